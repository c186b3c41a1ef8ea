"""What a run leaves for its report: one file in its folder, a line of JSON at a time.

    {"kind": "begin", "time": …, "step": 0, "of": 3000, "trainer": …, "config": {…}, "bits": 8, "versions": {…},
     "plan": {phase: bytes}, "trackers": {…}}
    {"kind": "log", "time": …, "step": 4, "score": 1.2, …}            whatever was logged
    {"kind": "sample", "step": 4, "prompt": …, "completion": …, "rewards": {name: score}}    of a few steps
    {"kind": "end", "time": …, "step": 400, "of": 3000, "peaks": {phase: bytes}}
    {"kind": "failure", "time": …, "step": 400, "error": …}           instead, of a run that an error has ended

"of" is how many steps the run has if nothing stops it.

Its name begins with an underscore, so that a push to the hub leaves it out: it holds prompts.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trl_ext.trainer_kit.run_record import as_json
from trl_ext.trainer_kit.whole_files import written_whole
from trl_ext.trainer_kit.whole_text import cut, with_whole_text

LOG = "_trl_ext_log.jsonl"
KINDS = ("begin", "log", "sample", "end", "failure")
LOOKS = 6  # at samples within a run, after the first; and one as it ends, wherever that is
SAMPLES = 32  # of each look
LONGEST = 4000  # characters of a text that are kept
PACKAGES = ("trl-ext", "trl", "transformers", "peft", "accelerate", "datasets", "torch", "bitsandbytes")


class RunLog(TrainerCallback):
    """Writes the file, in the main process. A run that is gone on with loses the lines behind its checkpoint; of one that was
    finished before, nothing changes.

    Args:
        folder: The run's.
        begin: What is known as it begins.
        samples: The last samples with their rewards, as dictionaries of prompt, completion and rewards.
        end: What is known when it ends.
        is_over: Whether no step is left.
    """

    def __init__(
        self,
        folder: str | Path,
        begin: Callable[[], dict[str, Any]],
        samples: Callable[[], list[dict[str, Any]]],
        end: Callable[[], dict[str, Any]],
        is_over: Callable[[], bool] = lambda: False,
    ):
        self.path, self.begin, self.samples, self.end, self.is_over = Path(folder) / LOG, begin, samples, end, is_over
        self.looked, self.sampled_at, self.failed, self.is_open, self.was_over = -1, -1, False, False, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.was_over = self.is_over() and self.path.exists()
        if not state.is_world_process_zero or self.was_over:
            return
        kept = [line for line in lines(self.path) if line.get("step", 0) <= state.global_step and state.global_step]
        self.sampled_at = max((line["step"] for line in kept if line["kind"] == "sample"), default=-1)
        self.looked = self._look(self.sampled_at, state) if self.sampled_at >= 0 else -1
        with written_whole(self.path) as partial:
            partial.write_text("".join(_written(line) for line in kept), encoding="utf-8")
        self._add("begin", state, {"of": state.max_steps, "versions": versions()} | self.begin())
        self.is_open = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not self.path.exists() or self.was_over:
            return  # before the run, an evaluation may be logged
        self._add(
            "log", state, {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        )
        if self._look(state.global_step, state) > self.looked:
            self._add_samples(state)

    def on_train_end(self, args, state, control, **kwargs):
        self.close(state)

    def close(self, state, error: BaseException | None = None) -> None:
        """Write how it has ended, once, with the last samples if they are new."""
        if not self.is_open:
            return
        self.is_open = False
        if state.global_step > self.sampled_at:
            with nullcontext() if error is None else suppress(Exception):  # what failed first must not be hidden
                self._add_samples(state)
        if error is None:
            self._add("end", state, {"of": state.max_steps} | self.end())
        else:
            self._add("failure", state, {"error": _short(f"{type(error).__name__}: {error}".removesuffix(": "))})

    def _add_samples(self, state) -> None:
        samples = self.samples()
        for sample in samples[:SAMPLES]:
            self._add("sample", state, {name: _short(value) for name, value in sample.items()})
        if samples:
            self.looked, self.sampled_at = self._look(state.global_step, state), state.global_step

    def _look(self, step: int, state) -> int:
        return LOOKS * step // max(state.max_steps, 1)

    def _add(self, kind: str, state, values: dict[str, Any]) -> None:
        line = {"kind": kind, "time": round(time.time(), 3), "step": state.global_step} | values
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_written(line))
        except OSError as error:  # what only informs must not stop a run
            if not self.failed:
                warnings.warn(
                    f"{self.path} cannot be written ({error}): the report will lack what follows.", stacklevel=2
                )
            self.failed = True


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's file, each with its kind, time and step; damaged ones, as a kill leaves the last, are passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = with_whole_text(json.loads(text))
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and line.get("kind") in KINDS and _is_placed(line):
                yield line


def _is_placed(line: dict[str, Any]) -> bool:
    return is_step(line.get("step")) and is_number(line.get("time"))


def is_number(value: Any) -> bool:
    """Whether it is a finite one, that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_step(value: Any) -> bool:
    """Whether it counts steps."""
    return isinstance(value, int) and is_number(value) and value >= 0


@cache
def versions() -> dict[str, str]:
    """Of the packages that a run stands on, read once."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _written(line: dict[str, Any]) -> str:
    return json.dumps(with_whole_text(as_json(line)), ensure_ascii=False) + "\n"


def _short(value: Any) -> Any:
    return cut(value, LONGEST) if isinstance(value, str) else value
