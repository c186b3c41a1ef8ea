"""Ctrl-C and SIGTERM: a run that is asked to stop ends after the step it is at, with a checkpoint."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PYTHONS_OWN = (signal.SIG_DFL, signal.default_int_handler)  # others are somebody's, and stay: nohup's, a program's


class RunStopped(KeyboardInterrupt):
    """A run was asked to stop, and has ended; the message says after which step, and how it goes on.

    A KeyboardInterrupt, so that what follows in a program is not done as if the run were complete.
    """


@contextmanager
def handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Inside, signals go to a handler, where Python's own would have them; another thread than the main one has none."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    before = {number: former for number, former in before.items() if former in PYTHONS_OWN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def signals_held() -> Iterator[None]:
    """Inside, the first signal waits until what is written is whole; a second one does not."""
    asked = []

    def hold(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    with handled(hold):
        yield
    if asked:
        raise KeyboardInterrupt


class StopWatch(TrainerCallback):
    """Listens for signals while a trainer trains; a second one stops at once, as without this.

    Several processes stop together: each looks after each step whether any of them was asked.

    Args:
        accelerator: The trainer's.

    Attributes:
        asked: The signal that came, None before.
        stopped_at: The step after which the run has ended.
        steps: How many were made.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.asked: signal.Signals | None = None
        self.stopped_at: int | None = None
        self.steps = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, signals are taken; from another thread than the main one they cannot be, and nothing changes."""
        with handled(self._take):
            yield

    def _take(self, number: int, frame) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)
        if self.accelerator.is_main_process:
            said = "\nStopping after this step, with a checkpoint. Once more: at once, without one.\n"
            os.write(sys.__stderr__.fileno(), said.encode())  # a handler must not enter a buffer that may be in use

    def between_parts(self) -> None:
        """Raise a RunStopped where a single process was asked to stop, and what it has done so far is on disk anyway."""
        if self.asked is not None and self.accelerator.num_processes == 1:
            raise RunStopped("before its next step; what was sampled is kept")

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        if self._anyone_asked():
            self.stopped_at = state.global_step
            control.should_save = control.should_training_stop = True

    def _anyone_asked(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.asked is not None
        asked = torch.tensor(int(self.asked is not None), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum").item())
