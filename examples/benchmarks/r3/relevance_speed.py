"""How fast is relevance, beside the authors' way, and how much of a training step does R³ take?

    python -m examples.benchmarks.r3.relevance_speed --encoder ENCODER --data TRIPLETS.jsonl [--policy MODEL]

Of the rows' `query` and `relevant`, 16 prompts with 4 completions each, of which there are three rounds as in three epochs
of training: each round's completions are others, its prompts the same. The ways score every round in turn, by seconds of
CPU time on one thread:

    the authors'      as in their code (reward_model.py): four pairs in one pass, all eight texts padded to the longest
    a pair at a time  a pass for the completion and two for the prompt, whose repetition is nobody's code
    here              RelevanceReward, which begins without knowing a prompt

The primary endpoint is the ratio of the authors' seconds to those here, at least 4 being the goal. With `--policy`, PPO steps
and RAFT's stages on that model are timed too, with R³ as reward.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertModel, PreTrainedTokenizerBase

from examples.benchmarks.common.quiet_runs import on_cpu, quiet
from trl_ext import PPOConfig, PPOTrainer, R3Reward, RAFTConfig, RAFTTrainer, RelevanceReward
from trl_ext.rewards.encoder import mean_pooled
from trl_ext.rewards.similarities import similarities

PROMPTS, SAMPLES, ROUNDS = 16, 4, 3
LONGEST = 256  # tokens of a text
Way = Callable[..., list[float]]
LENGTH = 64  # tokens of a completion in training
AUTHORS = "the authors'"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, help="path or hub id")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--policy", help="path of a causal language model")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    return parser.parse_args(arguments)


def rounds(file: Path, count: int) -> list[dict[str, list[str]]]:
    """Of each round the columns of a reward; completions are beginnings of answers, none of which comes twice."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    answers = [row["relevant"] for row in rows]
    prompts = [row["query"] for row in rows[:PROMPTS] for _ in range(SAMPLES)]
    rng = random.Random(0)
    return [
        {"prompts": prompts, "completions": [f"{i} {n} {rng.choice(answers)}" for n in range(len(prompts))]}
        for i in range(count)
    ]


def four_pairs_at_a_time(model: BertModel, tokenizer: PreTrainedTokenizerBase) -> Way:
    """The authors' way."""

    def score(prompts: list[str], completions: list[str]) -> list[float]:
        found = []
        for start in range(0, len(prompts), 4):
            part = slice(start, start + 4)
            ids = tokenizer(prompts[part] + completions[part], truncation=True, max_length=LONGEST)["input_ids"]
            found += similarities(*mean_pooled(model, ids).chunk(2), kind="cosine").tolist()
        return found

    return score


def one_pair_at_a_time(model: BertModel, tokenizer: PreTrainedTokenizerBase) -> Way:
    """With each prompt read twice."""

    def vector(text: str) -> Tensor:
        return mean_pooled(model, tokenizer([text], truncation=True, max_length=LONGEST)["input_ids"])

    def score(prompts: list[str], completions: list[str]) -> list[float]:
        found = []
        for prompt, completion in zip(prompts, completions, strict=True):
            _, x = vector(prompt), vector(prompt)
            found.append(similarities(x, vector(completion), kind="cosine").item())
        return found

    return score


@torch.no_grad()
def compare(path: str, data: list[dict]) -> dict[str, float]:
    """CPU seconds of each way over all rounds; what they say is the same."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    tokenizer.truncation_side = "left"
    here = RelevanceReward(path, similarity="cosine", max_length=LONGEST)
    here.vectors(["Ready?"])  # loads it
    theirs = four_pairs_at_a_time(model, tokenizer)
    ways = {AUTHORS: theirs, "a pair at a time": one_pair_at_a_time(model, tokenizer), "here": here}
    seconds = dict.fromkeys(ways, 0.0)
    for columns in data:
        scores = {}
        for name, way in ways.items():
            start = time.process_time()
            scores[name] = way(**columns)
            seconds[name] += time.process_time() - start
        torch.testing.assert_close(*(torch.tensor(scores[name]) for name in ("here", AUTHORS)), rtol=0, atol=1e-4)
    return seconds


def timed(reward: R3Reward) -> Way:
    """The reward, and the CPU seconds that it took."""

    def r3(**columns) -> list[float]:
        start = time.process_time()
        try:
            return reward(**columns)
        finally:
            r3.seconds += time.process_time() - start

    r3.seconds = 0.0
    return r3


def training_shares(args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """By trainer: CPU seconds of R³, and of all that training did."""
    rows = [json.loads(line) for line in args.data.read_text(encoding="utf-8").splitlines()]
    short = sorted((row["query"] for row in rows), key=len)[:8]
    columns = {"prompt": [f"Question: {query}\nAnswer:" for query in short], "query_type": ["open"] * 8}
    dataset, lora = Dataset.from_dict(columns), LoraConfig(r=8, task_type="CAUSAL_LM")
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_completion_length": LENGTH}
    trainers = {
        "PPO": (PPOTrainer, PPOConfig, {"num_train_epochs": 1, "num_generations": 1}),
        "RAFT": (RAFTTrainer, RAFTConfig, RAFT),
    }
    found = {}
    for name, (trainer, config, options) in trainers.items():
        reward = timed(R3Reward(relevance=RelevanceReward(args.encoder), max_completion_length=LENGTH))
        with tempfile.TemporaryDirectory() as folder:
            settings = config(**on_cpu(Path(folder), 0), **sizes, **options)
            made = trainer(args.policy, reward, settings, dataset, peft_config=lora)
            start, reward.seconds = time.process_time(), 0.0
            made.train()
            found[name] = (reward.seconds, time.process_time() - start)
    return found


RAFT = {"num_stages": 1, "stage_batch_size": 8, "num_generations": 4, "drop_truncated": False}


def main(arguments: list[str] | None = None) -> None:
    quiet()
    args = parse(arguments)
    seconds = compare(args.encoder, rounds(args.data, args.rounds))
    pairs = args.rounds * PROMPTS * SAMPLES
    for name, spent in seconds.items():
        print(f"{name:16} {spent:7.2f} s  {pairs / spent:7.1f} pairs a second  {seconds[AUTHORS] / spent:.2f} ×")
    for name, (spent, whole) in (training_shares(args) if args.policy else {}).items():
        print(f"{name:16} {spent:7.2f} s of {whole:.1f} s are R³'s: {100 * spent / whole:.2f} %")


if __name__ == "__main__":
    main()
