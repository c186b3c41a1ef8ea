"""Sequences on their way through a model's layers: what the terms of activations are functions of.

A term of a layer takes a pass through one: `of_each(run)` has them all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from trl_ext.memory_planning.layer_kinds import Layer, ModelShape


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Sequences that a model reads at once.

    Args:
        shape: Of the model.
        rows, length: Sequences, and tokens of each.
        width: c.
        rank: r of its adapter; 0: none.
        bits: 8 or 4 where its linear layers are quantised.
        trains_all: Whether its own weights are trained.
        autocast: Whether adapters, which are in fp32, compute in c bytes: in training, not in sampling and rewards.
        cuda: Which kernels compute it.
        cast: Whether autocast turns weights in fp32 to c bytes; the residual stream stays in fp32.
        at: The layer; None: the model's first kind.
        tile: Words of a tile of the vocabulary head; None: TRL's.
    """

    shape: ModelShape
    rows: int
    length: int
    width: int
    rank: int = 0
    bits: int | None = None
    trains_all: bool = False
    autocast: bool = True
    cuda: bool = True
    cast: bool = False
    at: Layer | None = None
    tile: int | None = None

    @cached_property
    def layer(self) -> Layer:
        return self.at or next(iter(self.shape.kinds))

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def state(self) -> int:
        """One hidden state of all tokens: c · N · H."""
        return self.width * self.tokens * self.shape.hidden

    @property
    def residual(self) -> int:
        """The hidden state between layers: as one, or in fp32."""
        return (4 if self.cast else self.width) * self.tokens * self.shape.hidden

    @property
    def inner(self) -> int:
        """One state inside the MLP: c · N · I."""
        return self.width * self.tokens * self.layer.inner

    @property
    def copies_inputs(self) -> bool:
        """Whether each adapter keeps its own copy of its input: PEFT turns it to fp32, and autocast back to 16 bits.

        Not on a quantised base, whose layers leave that to autocast.
        """
        return bool(self.rank) and self.autocast and self.width == 2 and self.bits is None


def of_each(run: Pass) -> list[tuple[Pass, int]]:
    """The pass through each kind of layer, and how many layers are of that kind."""
    return [(replace(run, at=layer), count) for layer, count in run.shape.kinds.items()]


def in_all(term: Callable[[Pass], int], run: Pass) -> int:
    """A term summed over all layers."""
    return sum(count * term(one) for one, count in of_each(run))


def in_largest(term: Callable[[Pass], int], run: Pass) -> int:
    """A term of the layer in which it is largest."""
    return max(term(one) for one, _ in of_each(run))
