"""Watches the optimizer steps of a run: what each is made of, whether that is finite, and which a loss scaler skips."""

import functools
import math
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback

from trl_ext.trainer_kit.finite_findings import all_finite, seem_finite

MOST_SKIPPED = 20  # steps in a row: by then a loss scaler has halved its scale as often


@dataclass
class MicroBatch:
    """What a loss was made of.

    Args:
        num_items: What it was divided by, where Trainer says.
        inputs: What it read.
        terms: Its terms by their names, the whole loss last; scalars, which nobody has waited for.
    """

    num_items: Tensor | int | None
    inputs: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, Tensor] = field(default_factory=dict)


class StepWatch(TrainerCallback):
    """Remembers the micro-batches of an optimizer step, and counts the steps that a loss scaler skips.

    Args:
        accelerator: Whose loss scaler may skip steps, and whose processes decide together.
        check_weights: Raises an error where a weight is not finite; told when that is.
        trainer: Its name, for messages.

    Attributes:
        skipped: Steps that were skipped since this was last logged.
    """

    def __init__(self, accelerator: Accelerator, check_weights: Callable[[str], None], trainer: str):
        self.accelerator, self.check_weights, self.trainer = accelerator, check_weights, trainer
        self._batches: list[MicroBatch] = []
        self._open: MicroBatch | None = None
        self.skipped = self._in_a_row = 0

    # A micro-batch

    @contextmanager
    def micro_batch(self, num_items: Tensor | int | None) -> Iterator[MicroBatch]:
        """One of the step's; inside the block, `reads` and `total` tell of it."""
        self._open = MicroBatch(num_items)
        try:
            yield self._open
            self._batches.append(self._open)
        finally:
            self._open = None

    def reads(self, inputs: dict[str, Any]) -> None:
        if self._open is not None:
            self._open.inputs = dict(inputs)  # a loss may take some out

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The sum of a loss's terms, by the names that an error would say."""
        if self._open is not None:
            self._open.terms = {name: term.detach() for name, term in terms.items()}
        return functools.reduce(operator.add, terms.values())

    def step(self) -> list[MicroBatch]:
        """The step's micro-batches; the next begins."""
        batches, self._batches = self._batches, []
        return batches

    def failed(self, batches: list[MicroBatch], gradients: list[Tensor]) -> tuple[bool, bool]:
        """Whether a loss, and whether a gradient, of any process is not finite; all that a sound step waits for."""
        losses = torch.stack([[*batch.terms.values()][-1] for batch in batches])
        loss, gradient = self._any(~losses.isfinite().all(), ~seem_finite(gradients))
        if gradient and not loss:
            (gradient,) = self._any(torch.tensor(not all_finite(gradients), device=losses.device))
        return loss, gradient

    def _any(self, *said: Tensor) -> list[bool]:
        """Whether any process says so, of each."""
        counts = torch.stack([each.to(said[0].device).float() for each in said])
        return [count > 0 for count in self.accelerator.reduce(counts, reduction="sum").tolist()]

    def takes(self, step: int, *, skipped: bool) -> None:
        """Count a step, which the loss scaler skips or not; raise an error at the last that it may skip in a row.

        The gradients say so: accelerate does not see where a fused optimizer skips by itself.
        """
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        self.skipped += skipped
        if self._in_a_row == MOST_SKIPPED:
            raise FloatingPointError(
                f"{self.trainer}.train: the loss scaler has skipped {MOST_SKIPPED} optimizer steps in a row, up to step "
                f"{step}: their gradients in fp16 are not finite, at a loss scale of "
                f"{self.accelerator.scaler.get_scale():g} now. Checkpoints before it are kept. Train with bf16=True or in "
                "float32, or begin before the first such step with a lower learning_rate."
            )

    # A run

    def on_train_begin(self, args, state, control, **kwargs):
        self._batches, self.skipped, self._in_a_row = [], 0, 0
        self.check_weights(f"before step {state.global_step + 1}")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        bad = [
            name for name, value in (metrics or {}).items() if isinstance(value, float) and not math.isfinite(value)
        ]
        if bad and state.is_world_process_zero:
            best = (
                "; `load_best_model_at_end` goes by it, and takes no such step"
                if args.metric_for_best_model in bad
                else ""
            )
            warnings.warn(
                f"{self.trainer}: in the evaluation after step {state.global_step}, {bad[0]} is {metrics[bad[0]]}{best}. Look at the "
                "evaluation's rows: some have a loss or a score that is not finite.",
                stacklevel=2,
            )

    def on_train_end(self, args, state, control, **kwargs):
        self.check_weights(f"after step {state.global_step}")
