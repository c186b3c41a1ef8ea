"""What a command that trains says of its steps: a line of what matters; all that is logged is in the run's folder."""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from trl_ext.trainer_kit.time_left import duration

WIDTH = 80
SHORT = {"kl_per_completion": "kl", "completions/mean_length": "length"}  # names that stand for themselves in a line
RUNTIME, HELD_OUT = "train_runtime", "eval_"


class BarAlone(ProgressCallback):
    """transformers' bar, that says nothing of what is logged."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


class LoggedLines(TrainerCallback):
    """Says what matters of what is logged.

    Args:
        names: Of metrics, in their order.
    """

    def __init__(self, names: Sequence[str]):
        self.names, self.steps = tuple(names), 0

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def on_log(self, args, state, control, logs=None, **kwargs):
        line = logged_line(state.global_step, state.max_steps, logs or {}, self.names)
        if line and self.steps and state.is_world_process_zero:
            tqdm.write(line, file=sys.stdout)


def logged_line(step: int, steps: int, logs: Mapping[str, Any], names: Sequence[str]) -> str:
    """Of one dictionary of metrics; "" where nothing in it matters.

    >>> logged_line(3, 300, {"score": 0.51234, "completions/mean_length": 8.0, "x": 1}, ["score", "completions/mean_length"])
    'step 3/300: score 0.5123, length 8'
    >>> logged_line(3, 3, {"train_runtime": 62.0, "train_loss": 0.5}, ["score"])
    'step 3/3: trained in 1 min'
    """
    place = f"step {step}/{steps}"
    if RUNTIME in logs:
        return f"{place}: trained in {duration(logs[RUNTIME])}"
    prefix = HELD_OUT if any(name.startswith(HELD_OUT) for name in logs) else ""
    logged = {name.removeprefix(prefix): value for name, value in logs.items() if isinstance(value, int | float)}
    found = [name for name in names if name in logged] or [name for name in ("loss",) if name in logged]
    if not found:
        return ""
    said = ", ".join(f"{SHORT.get(name, name)} {logged[name]:.4g}" for name in found)
    line = f"{place}{', held out' if prefix else ''}: {said}"
    return "\n".join(textwrap.wrap(line, WIDTH, subsequent_indent="    "))


def say_what_matters(trainer: Trainer, names: Sequence[str]) -> None:
    """Put these lines in the place of transformers' dictionaries of everything."""
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(BarAlone)
    trainer.add_callback(LoggedLines(names))
