"""vLLM in a process of its own: started once, then told what to do line by line.

    python -m trl_ext.generation.vllm_worker engine.json 5

It reads JSON lines from its standard input, {"do": "answer", "request": FILE}, {"do": "sleep"} or {"do": "wake"}, and
writes to the given descriptor {"part": 3} for each part whose file is there, and {"done": true} when it is ready for the
next line, first when vLLM has been loaded. `VLLMProcess` starts it. It ends by itself, and removes its folder, when its
standard input closes, that is, when its parent is gone.
"""

import json
import os
import queue
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trl_ext.generation.vllm_answers import batches, completions, sampling_params
from trl_ext.trainer_kit.whole_files import written_whole

ADAPTERS = "policy-{}"  # their folders' names, by number
REFUSED, PARENT_IS_GONE = 4, 3  # exit codes


class Engine:
    """vLLM with the adapter that it was sent last.

    Args:
        engine: Arguments of `vllm.LLM`.
    """

    def __init__(self, engine: dict[str, Any]):
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError('VLLMGenerator needs vLLM: pip install "trl-ext[vllm]"') from error
        self.llm = LLM(**engine)
        self.adapter = self.lora = None

    def take(self, adapter: dict[str, Any] | None) -> None:
        """Serve this adapter from now on, and forget the one before. The folders of all others are removed, also of those
        that were sent to a process before this one.

        vLLM keeps keys and values by an adapter's name and path, so that each needs its own.

        Args:
            adapter: Its `id`, `name` and `path`, and the `folder` that was made for it; None: the model alone.
        """
        from vllm.lora.request import LoRARequest

        self.lora = adapter and LoRARequest(adapter["name"], adapter["id"], adapter["path"])
        if self.lora is not None:
            self.llm.llm_engine.add_lora(self.lora)
        if self.adapter is not None and self.adapter != adapter:
            self.llm.llm_engine.remove_lora(self.adapter["id"])
        self.adapter = adapter
        own = Path(adapter["folder"]) if adapter else None
        for folder in own.parent.glob(ADAPTERS.format("*")) if own else ():
            if folder != own:
                shutil.rmtree(folder, ignore_errors=True)

    def parts(self, request: dict[str, Any]) -> Iterator[tuple[int, list[list]]]:
        """Each part's number, and for each of its prompts the samples as `completions` makes them."""
        for parts in batches(request["parts"], request["prompts_at_once"]):
            prompts = [prompt for part in parts for prompt in part["prompts"]]
            outputs = self.llm.generate(
                [{"prompt_token_ids": prompt["ids"]} for prompt in prompts],
                [sampling_params(request, seed=prompt["seed"]) for prompt in prompts],
                use_tqdm=False,
                lora_request=self.lora,
            )
            answers = iter(outputs)
            for part in parts:
                yield part["index"], [completions(next(answers), request) for _ in part["prompts"]]

    def do(self, command: dict[str, Any], say: Callable[..., None]) -> None:
        """What a line of the parent asks for; `say` tells it what has been done."""
        if command["do"] == "sleep":
            self.llm.sleep(level=1)
        elif command["do"] == "wake":
            self.llm.wake_up()
        else:
            request = json.loads(Path(command["request"]).read_text(encoding="utf-8"))
            with refusals():
                self.take(request["adapter"])
            for index, answers in self.parts(request):
                with written_whole(part_file(Path(request["folder"]), index), lasting=False) as partial:
                    partial.write_text(json.dumps(answers), encoding="utf-8")
                say(part=index)


def part_file(folder: Path, index: int) -> Path:
    return folder / f"part-{index:05d}.json"


@contextmanager
def refusals() -> Iterator[None]:
    """End the process for an error here in a way that says: again would be no better."""
    try:
        yield
    except Exception:
        traceback.print_exc()
        sys.exit(REFUSED)


def listen(descriptor: int, take: Callable[[dict], None], folder: Path, end: Callable[[int], None] = os._exit) -> None:
    """Take each line that the parent writes; when its pipe closes, remove the folder and end, so that no card stays taken.

    Read without a buffer: a thread that holds a buffer's lock would abort the interpreter at its regular end.
    """
    unread = b""
    while read := os.read(descriptor, 65536):
        *lines, unread = (unread + read).split(b"\n")
        for line in lines:
            take(json.loads(line))
    shutil.rmtree(folder, ignore_errors=True)
    end(PARENT_IS_GONE)


def main(engine_path: str, answers: int) -> None:
    """Load vLLM as the file says, then do what each line asks for; `answers`: the descriptor to write to."""
    os.set_inheritable(answers, False)  # what vLLM starts must not keep it open when this process has died
    commands: queue.Queue = queue.Queue()
    listening = (sys.stdin.fileno(), commands.put, Path(engine_path).parent)
    threading.Thread(target=listen, args=listening, daemon=True).start()

    def say(**what) -> None:
        os.write(answers, json.dumps(what).encode() + b"\n")

    with refusals():
        engine = Engine(json.loads(Path(engine_path).read_text(encoding="utf-8")))
    while True:
        say(done=True)
        engine.do(commands.get(), say)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
