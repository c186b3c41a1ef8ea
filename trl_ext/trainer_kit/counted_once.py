"""An evaluation by several processes whose loss is of each row once: accelerate repeats some where rows do not come out even."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from accelerate import Accelerator
from torch import Tensor

from trl_ext.trainer_kit.overrides import replaced
from trl_ext.trainer_kit.processes import alone


class CountedOnce:
    """Mixin before a TRL trainer: the loss of an evaluation's last batch is that of the rows which a process has to count.

    Trainer weighs each process's loss by the rows that count, but it is the mean over all of its rows. Where some of the last
    ones are there twice, one more pass reads the others alone. What a trainer says of its own:

        _noted         what its loss writes metrics into
        _row_means     names of those that are means over rows, as the loss is
        _rows_of       how many rows of the data set are in a batch
        _first_rows    so many of them, as a batch
    """

    _noted: tuple[str, ...] = ("_metrics",)
    _row_means: frozenset[str] = frozenset()
    _metrics: dict[str, dict[str, list[float]]]

    def prediction_step(self, model, inputs, prediction_loss_only, *args, **kwargs):
        loss, *others = super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        rows = self._rows_of(inputs)
        own, any_twice = counted_rows(rows, self.accelerator)
        if any_twice:  # of any process: all pass together, as what shards a model asks of them
            with self._noted_apart() as noted:
                loss, *_ = super().prediction_step(model, self._first_rows(inputs, own or rows), True, *args, **kwargs)
            for name in self._row_means & noted.keys():
                total, count = self.accelerator.reduce(loss.new_tensor([noted[name][-1] * own, own]), reduction="sum")
                self._metrics["eval"][name][-1] = (total / count).item()
        return loss, *others

    @contextmanager
    def _noted_apart(self) -> Iterator[dict[str, list[float]]]:
        """Inside, a process notes what it has itself, in the place of what was noted, which is back after it."""
        with alone(self.accelerator), replaced(self, **{name: deepcopy(getattr(self, name)) for name in self._noted}):
            yield self._metrics["eval"]

    def _rows_of(self, inputs: dict) -> int:
        return len(inputs["input_ids"])

    def _first_rows(self, inputs: dict, count: int) -> dict:
        return {name: value[:count] if isinstance(value, Tensor) else value for name, value in inputs.items()}


def counted_rows(count: int, accelerator: Accelerator) -> tuple[int, bool]:
    """How many of a process's rows it has to count, and whether any process has one that it has not."""
    if accelerator.num_processes == 1:
        return count, False
    ours = torch.full((count,), accelerator.process_index, device=accelerator.device)
    counted = accelerator.gather_for_metrics(ours)
    return int((counted == accelerator.process_index).sum()), len(counted) < count * accelerator.num_processes
