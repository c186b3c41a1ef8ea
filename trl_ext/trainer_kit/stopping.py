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
AFTER_STEP = "Stopping after this step, with a checkpoint."
AFTER_PART = "Stopping after this part of the samples, with a checkpoint of the steps that were made."
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
        kept_at: The step of the checkpoint that was written last, 0 before.
        in_parts: Whether it is at what is kept in parts as it comes, between which it ends rather than after a step.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.asked: signal.Signals | None = None
        self.stopped_at: int | None = None
        self.steps = self.kept_at = 0
        self.in_parts = False

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
            after = AFTER_PART if self.in_parts and self._is_alone else AFTER_STEP
            said = f"\n{after} Once more: at once, without one.\n"
            os.write(sys.__stderr__.fileno(), said.encode())  # a handler must not enter a buffer that may be in use

    def ends_between_parts(self) -> bool:
        """Whether it ends here: several processes would not all be at the same part, and end after a step."""
        return self.asked is not None and self._is_alone

    @property
    def _is_alone(self) -> bool:
        return self.accelerator.num_processes == 1

    def on_save(self, args, state, control, **kwargs):
        self.kept_at = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        if self._anyone_asked():
            self.stopped_at = state.global_step
            control.should_save = control.should_training_stop = True

    def hear_what_came_late(self, step: int) -> None:
        """Of a signal behind the last step, as while its checkpoint was written: it ends the run as one at that step does.

        Without such a checkpoint it is passed over, or what was learned would be lost.
        """
        if self.stopped_at is None and self._anyone_asked() and self.kept_at == step:
            self.stopped_at = step

    def _anyone_asked(self) -> bool:
        if self._is_alone:
            return self.asked is not None
        asked = torch.tensor(int(self.asked is not None), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum").item())
