"""What is not finite, and how an error says it: of which term, from which rows, and what to do."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import get_total_norm

from trl_ext.trainer_kit.sharding import own_part

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # what a norm can be taken of
SHOWN = 3  # rows in an error
TEXT = 60  # letters of a row
BY_WEIGHTS = (
    "Look at the model's weights, load it in bfloat16 or float32 if it is in float16, and lower its learning rate if it "
    "was trained."
)


def seem_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether the norm of all numbers is finite: a scalar that nobody has waited for, on the first tensor's device.

    It is not if one of them is not, nor where the squares of large ones are beyond all floats: `all_finite` tells. Of a
    sharded tensor this process's part counts; quantised ones and those without memory do not.
    """
    return get_total_norm(_read(tensors)).isfinite()


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite.

    >>> all_finite([torch.tensor([3e38, 3e38]), torch.ones(2, dtype=torch.float16)]), all_finite([torch.tensor(math.nan)])
    (True, False)
    """
    read = _read(tensors)  # the largest is looked for where the norm says nothing: on a CPU it takes 20 times as long
    return bool(get_total_norm(read).isfinite() or get_total_norm(read, norm_type=math.inf).isfinite())


def _read(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [
        t.detach()
        for t in map(own_part, tensors)
        if t.dtype in FLOATS and t.numel() and not t.is_meta and not t.is_sparse
    ]


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a number that is not finite."""
    return next((name for name, tensor in tensors.items() if not all_finite([tensor])), None)


def check_rows(numbers: Mapping[str, Tensor], mask: Tensor, accelerator: Accelerator, *, call: str) -> None:
    """Raise a FloatingPointError, in all processes, for the first of some numbers that is not finite where the mask is 1.

    Args:
        numbers: By what they are, `(B, T)` each.
        mask: `(B, T)`, 1 on tokens to learn from.
        accelerator: Whose processes decide together.
        call: What they were made in.
    """
    rows = torch.stack([(~tensor.isfinite() & mask.bool()).any(1).sum() for tensor in numbers.values()])
    failing = accelerator.reduce(rows.float(), reduction="sum").tolist()
    for name, count in zip(numbers, failing, strict=True):
        if count:
            raise FloatingPointError(
                f"{call}: the {name} is not finite in {count:.0f} of {len(mask) * accelerator.num_processes} completions, so "
                f"nothing is learned from them; checkpoints before it are kept. {BY_WEIGHTS}"
            )


@contextmanager
def named_sampling(call: str) -> Iterator[None]:
    """Say of torch's error inside the block, for probabilities that are none, where they are from."""
    try:
        yield
    except RuntimeError as error:  # on CUDA it is an assertion, whose reason is on stderr only
        if not any(sign in str(error) for sign in ("probability tensor", "device-side assert")):
            raise
        raise FloatingPointError(
            f"{call} could not be sampled, as where the policy's probabilities are not finite: {error}. {BY_WEIGHTS}"
        ) from error


@dataclass(frozen=True)
class Row:
    """A row that was looked at alone.

    Args:
        place: Where it was in its step.
        text: How it begins.
        fails: Whether its loss, or the gradient of it, is not finite.
        columns: Of what was read of it, what is not finite, and one such number.
    """

    place: str
    text: str
    fails: bool
    columns: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        columns = "".join(f", its {name} {value}" for name, value in self.columns.items())
        return f"{self.place} ({self.text!r}{columns})"


@dataclass(frozen=True)
class Finding:
    """What one process has found.

    Args:
        what: A term of the loss, or the gradient of a parameter.
        value: What it is instead of a finite number.
        rows: Those that were looked at alone; none where they cannot be told apart.
    """

    what: str
    value: str
    rows: list[Row] = field(default_factory=list)


def columns_not_finite(row: dict[str, Any]) -> dict[str, float]:
    """The tensors of a row that are not finite, by their names, and the first such number of each.

    >>> columns_not_finite({"margin": torch.tensor([math.nan]), "input_ids": torch.tensor([[5, 6]])})
    {'margin': nan}
    """
    floats = {name: t for name, t in row.items() if isinstance(t, Tensor) and t.is_floating_point()}
    return {name: t[~t.isfinite()][0].item() for name, t in floats.items() if not t.isfinite().all()}


def stop_message(
    findings: list[Finding | None], call: str, rates: dict[str, float], *, outcome: str = "was not made"
) -> str:
    """The error that all processes raise.

    Args:
        findings: Of each process, None where it has found nothing.
        call: Of the run, and its step.
        rates: Learning rates by their names.
        outcome: What has become of the step.
    """
    found = [(process, finding) for process, finding in enumerate(findings) if finding is not None]
    process, first = found[0]
    where = f" in process {process} of {len(findings)}" if len(findings) > 1 else ""
    rows = [row for _, finding in found for row in finding.rows]
    return (
        f"{call} {outcome}: {first.what} is {first.value}{where}.{rows_said(rows)} Nothing of this step is saved, and "
        f"checkpoints before it are kept. {advice(rows, rates)}"
    )


def rows_said(rows: list[Row]) -> str:
    """Which rows it comes from, a sentence after a space; nothing where that is not known."""
    failing = [str(row) for row in rows if row.fails]
    if not failing:
        return ""
    more = ", …" if len(failing) > SHOWN else ""
    return f" {len(failing)} of {len(rows)} rows, each read alone, give that: {', '.join(failing[:SHOWN])}{more}."


def advice(rows: list[Row], rates: dict[str, float]) -> str:
    """What to do: about the rows where it comes from some of them, about the run where it comes from all."""
    failing = [row for row in rows if row.fails]
    columns = sorted({name for row in failing for name in row.columns})
    named = " and ".join(f"{name} ({rate:g})" for name, rate in rates.items())
    lower = f"lower {named}, or train in bf16 if it is fp16"
    if columns:
        return f"Mend {' and '.join(columns)} of such rows, or leave them out."
    if 0 < len(failing) < len(rows):
        return f"Look at these rows, and leave them out if they are to blame; else {lower}."
    return f"To go on from the newest checkpoint, {lower}."
