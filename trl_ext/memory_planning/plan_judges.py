"""Reward models and judges that are other models than the policy: what they weigh, each with a base of its own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trl_ext.memory_planning.layer_kinds import ModelShape
from trl_ext.memory_planning.memory_terms import base_bytes
from trl_ext.memory_planning.model_shapes import shape_of

BITS = (None, 16, 8, 4)


@dataclass(frozen=True)
class PlannedJudge:
    """A model beside the policy that scores completions.

    Args:
        name: Of the model.
        weights: Bytes; 0: not known.
        shape: None: not known, so that its passes are not counted.
        bits: 8 or 4 where its linear layers are quantised.
        width: Bytes of a number of all else.
    """

    name: str
    weights: int
    shape: ModelShape | None
    bits: int | None
    width: int

    @property
    def left_out(self) -> str | None:
        """What of it is not counted, in words."""
        if self.shape is not None:
            return None
        rest = "its weights are counted, and not what its passes need" if self.weights else "it is not counted"
        return f"{self.name} is of no known shape: {rest}"


def planned_judges(judges: Sequence[Any], *, bits: int | None, width: int) -> tuple[PlannedJudge, ...]:
    """Each as it is planned for: of a name, a configuration or a shape, a causal LM in so many bits.

    Raises:
        ValueError: For what is no decoder of text, whose weights cannot be told from a configuration.
    """
    if isinstance(judges, str | os.PathLike | ModelShape) or not isinstance(judges, Sequence):
        raise ValueError(f"memory_plan(judges={judges!r}): expected a list of models. Give [{judges!r}].")
    if bits not in BITS or isinstance(bits, bool):
        raise ValueError(f"memory_plan(judge_bits={bits!r}): expected None, 8 or 4. Choose one.")
    if bits is not None and not judges:
        raise ValueError(f"memory_plan(judge_bits={bits}): there are no judges. Give judges=[…], or leave it out.")
    return tuple(_planned(judge, None if bits == 16 else bits, width) for judge in judges)


def shape_if_known(model: Any) -> ModelShape | None:
    """Without its name, so that equal ones are equal; None for what is no decoder of text."""
    try:
        return replace(shape_of(model), name="")
    except ValueError:
        return None


def _planned(judge: Any, bits: int | None, width: int) -> PlannedJudge:
    if isinstance(judge, PlannedJudge):
        return judge
    shape = shape_of(judge, call="memory_plan(judges=[…])")
    bits = None if shape.refuses_bits else bits
    return PlannedJudge(shape.name, base_bytes(shape, bits=bits, width=width), shape, bits, width)
