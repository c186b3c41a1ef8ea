"""A run's memory beside its plan: said before it begins, measured while it runs, explained when it runs out."""

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

from trl_ext.memory_planning.planning import GIB, MemoryPlan

logger = logging.getLogger("trl_ext")


@dataclass(frozen=True)
class Card:
    """What a device's allocator says; bytes.

    Args:
        device: A CUDA device.
    """

    device: torch.device

    def total(self) -> int:
        """What this process may have: free now, or held by it already."""
        return torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device)

    def peaks(self) -> tuple[int, int]:
        """Highest allocated and reserved since `reset`."""
        return torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)

    def release(self) -> None:
        """Give back what the allocator keeps for later, such as the blocks of a cache of keys and values."""
        torch.cuda.empty_cache()

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)


class MemoryWatch(TrainerCallback):
    """Says the plan when a run begins, and what each phase took when it ends.

    On a CPU nothing is measured, and nothing is warned of.

    Args:
        make_plan: Makes the plan; an error means that there is none for this run.
        card: What the run is on; None for a CPU.

    Attributes:
        plan: The plan, once the run has begun, or None.
        says_plan: Whether it says the plan; not, where somebody else has said it.
        phase: Where the run is: generate, score or train; None outside a run.
        measured: By phase, the highest bytes allocated and reserved.
        seconds: By phase, how long the run was in it, until the last change.
    """

    def __init__(self, make_plan: Callable[[], MemoryPlan], card: Card | None):
        self.make_plan, self.card = make_plan, card
        self.plan: MemoryPlan | None = None
        self.says_plan = True
        self.phase: str | None = None
        self.measured: dict[str, tuple[int, int]] = {}
        self.seconds: dict[str, float] = {}
        self._entered = 0.0

    def enter(self, phase: str | None) -> None:
        """A phase begins, and the one before ends; what sampling has cached is given back."""
        if self.card is not None:
            if self.phase == "generate":
                self.card.release()
            if self.phase is not None:
                before = self.measured.get(self.phase, (0, 0))
                peaks = self.card.peaks()
                self.measured[self.phase] = (max(before[0], peaks[0]), max(before[1], peaks[1]))
            self.card.reset()
        now = time.monotonic()
        if self.phase is not None:
            self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self._entered
        self.phase, self._entered = phase, now

    def on_train_begin(self, args, state, control, **kwargs):
        self.measured.clear()
        self.seconds.clear()
        self.enter("train")
        try:
            self.plan = self.make_plan()
            room = self.plan.peak if self.card is None else self.card.total()
            line = self.plan.line()
        except Exception as reason:  # what only informs must not stop a run
            self.plan = None
            self._say(f"memory plan: none for this run ({reason})", state)
            return
        if self.plan.peak > room:
            text = f"the memory plan is above what is free, {room / GIB:.1f} GiB: {line}. {self._advice()}"
            warnings.warn(text, stacklevel=2)
        elif self.says_plan:
            self._say(line, state)

    def on_train_end(self, args, state, control, **kwargs):
        self.enter(None)
        for phase, (allocated, reserved) in self.measured.items():
            plan = None if self.plan is None else self.plan.phases.get(phase)
            planned = "" if plan is None else f", planned {plan.bytes / GIB:.2f}"
            text = f"memory in {phase}: {allocated / GIB:.2f} GiB allocated, {reserved / GIB:.2f} reserved{planned}"
            self._say(text, state)

    def explain(self) -> str:
        """For an error: where the run was, what was planned, and what would need less."""
        where = f"out of memory in the phase {self.phase!r}."
        if self.plan is None:
            return f"{where} Lower per_device_train_batch_size, completion lengths or the batch that is sampled."
        phase = self.plan.phases.get(self.phase or "")
        planned = "" if phase is None else f" It was planned to take {phase.bytes / GIB:.1f} GiB ({self.plan.line()})."
        return f"{where}{planned} {self._advice()}"

    def _advice(self) -> str:
        """The plan's changes in order, until it fits; where it should fit already, its first ones."""
        try:
            room = self.card.total() if self.card is not None else self.plan.peak
            advice = self.plan.advice(room) or self.plan.advice(max(int(0.8 * self.plan.peak), 1))
        except Exception as reason:  # what only informs must not stop a run, nor hide why it stopped
            return f"What would need less is not known ({reason})."
        changes = "; ".join(f"{a.change}, {a.config} (peak {a.peak / GIB:.1f} GiB; {a.cost})" for a in advice)
        return f"Cheapest changes, one on top of the other: {changes}." if advice else "No change would make it fit."

    def _say(self, text: str, state) -> None:
        """Once: in the log where somebody reads it, else on a line of its own, whether or not there is a progress bar."""
        if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
            logger.info(text)
        elif state.is_world_process_zero:
            tqdm.write(text)


def card_of(device: torch.device) -> Card | None:
    """The card that a run is on, or None."""
    return Card(device) if device.type == "cuda" else None
