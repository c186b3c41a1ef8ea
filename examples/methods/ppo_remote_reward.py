"""PPO with a reward that another machine computes: a small HTTP server with a reward model, and a reward function that asks it.

    python examples/methods/ppo_remote_reward.py serve --reward my-reward-model --port 8001
    python examples/methods/ppo_remote_reward.py train --url http://localhost:8001 --model_name_or_path my-sft \\
        --prompts prompts.jsonl --output_dir ppo --max_completion_length 128

POST {"prompts": […], "completions": […], "completion_ended": […]}, or "completion_ids" in its place, gives {"scores": […]}. The
server is for a network that you trust. A failing request is tried three times; the same command then goes on from the last checkpoint.
"""

import json
import sys
import time
import urllib.request
from argparse import ArgumentParser
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from datasets import load_dataset
from trl import ModelConfig, TrlParser, get_peft_config

from trl_ext import LearnedReward, PPOConfig, PPOTrainer


def server(reward: LearnedReward, port: int) -> ThreadingHTTPServer:
    """Answers with what a reward function gives; `serve_forever()` starts it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps({"scores": reward(**asked)}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    return ThreadingHTTPServer(("", port), Handler)


def remote_reward(url: str, *, timeout: float = 120, tries: int = 3):
    """A reward function like any other; it works in TRL's trainers too."""

    def remote(*, prompts: list, completions: list, **columns) -> list[float]:
        ends = {name: columns.get(name) for name in ("completion_ended", "completion_ids")}  # TRL's own give ids alone
        asked = json.dumps({"prompts": prompts, "completions": completions, **ends}).encode()
        asked = urllib.request.Request(url, asked)
        for attempt in range(tries):
            try:
                with urllib.request.urlopen(asked, timeout=timeout) as answer:
                    return json.load(answer)["scores"]
            except OSError:  # of the network, a time-out and a status that is no success among them
                if attempt == tries - 1:
                    raise
                time.sleep(2**attempt)

    return remote


@dataclass
class Options:
    url: str  # where `serve` listens
    prompts: str  # JSON lines with prompt


def main(arguments: list[str]) -> None:
    if arguments[0] == "serve":
        parser = ArgumentParser()
        parser.add_argument("--reward", required=True)
        parser.add_argument("--port", type=int, default=8001)
        options = parser.parse_args(arguments[1:])
        return server(LearnedReward(options.reward), options.port).serve_forever()
    options, args, model = TrlParser((Options, PPOConfig, ModelConfig)).parse_args_and_config(arguments[1:])
    prompts, reward = load_dataset("json", data_files=options.prompts, split="train"), remote_reward(options.url)
    trainer = PPOTrainer(model.model_name_or_path, reward, args, prompts, peft_config=get_peft_config(model))
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()


if __name__ == "__main__":
    main(sys.argv[1:])
