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
RUNTIME, MEAN_LOSS, HELD_OUT = "train_runtime", "train_loss", "eval_"
WHERE, FALLBACK = "stage", "loss"  # says where a run is, and nothing alone; stands in for names that are not logged


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
        self.names, self.steps, self.has_better, self.has_loss = tuple(names), 0, False, False

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        if RUNTIME in logs and not self.steps:
            return  # of a run that was finished before
        self.has_loss = self.has_loss or FALLBACK in logs
        if MEAN_LOSS in logs and not self.has_loss and self.steps == state.global_step:  # it was too short for a log
            logs = logs | {FALLBACK: logs[MEAN_LOSS]}
        self.has_better = self.has_better or bool(matters(logs, self.names))
        if self.has_better and FALLBACK not in self.names:  # as of PPO's steps between two rollouts
            logs = {name: value for name, value in logs.items() if name != FALLBACK}
        line = logged_line(state.global_step, state.max_steps, logs, self.names)
        if line and state.is_world_process_zero:
            tqdm.write(line, file=sys.stdout)


def logged_line(step: int, steps: int, logs: Mapping[str, Any], names: Sequence[str]) -> str:
    """Of one dictionary of metrics; "" where nothing in it matters.

    >>> logged_line(3, 300, {"score": 0.51234, "completions/mean_length": 8.0, "x": 1}, ["score", "completions/mean_length"])
    'step 3/300: score 0.5123, length 8'
    >>> logged_line(3, 3, {"train_runtime": 62.0, "train_loss": 0.5}, ["score"])
    'step 3/3: trained in 1 min'
    >>> logged_line(3, 3, {"train_runtime": 62.0, "score": 0.5}, ["score"])
    'step 3/3: score 0.5; trained in 1 min'
    """
    prefix = HELD_OUT if any(name.startswith(HELD_OUT) for name in logs) else ""
    logged = {name.removeprefix(prefix): value for name, value in logs.items()}
    found = matters(logged, names) or matters(logged, [FALLBACK])
    said = [", ".join(f"{SHORT.get(name, name)} {logged[name]:.4g}" for name in found)] if found else []
    said += [f"trained in {duration(logs[RUNTIME])}"] if RUNTIME in logs else []
    if not said:
        return ""
    line = f"step {step}/{steps}{', held out' if prefix else ''}: {'; '.join(said)}"
    return "\n".join(textwrap.wrap(line, WIDTH, subsequent_indent="    "))


def matters(logs: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Those names under which a number is logged; none where only the place of a run is.

    >>> matters({"stage": 1, "loss": 0.5}, ["stage", "loss"]), matters({"stage": 1, "x": 2}, ["stage", "loss"])
    (['stage', 'loss'], [])
    """
    found = [name for name in names if isinstance(logs.get(name), int | float)]
    return [] if found == [WHERE] else found


def say_what_matters(trainer: Trainer, names: Sequence[str]) -> None:
    """Put these lines in the place of transformers' dictionaries of everything."""
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(BarAlone)
    trainer.add_callback(LoggedLines(names))
