"""What passes through a decoder compute and read at least: each follows from shapes.

A product and the sum it goes into are two operations. N tokens; V · H of the vocabulary head.
"""

from dataclasses import dataclass

from trl_ext.memory_planning.layer_kinds import Layer, ModelShape
from trl_ext.memory_planning.memory_terms import linear_bytes


@dataclass(frozen=True)
class Work:
    """What is computed and read at once.

    Args:
        operations: In 16 bits, or as many as take the time of these.
        in_8_bits: Those of 8-bit layers.
        read: Bytes.
    """

    operations: float = 0.0
    in_8_bits: float = 0.0
    read: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.operations + other.operations, self.in_8_bits + other.in_8_bits, self.read + other.read)

    def __mul__(self, times: float) -> "Work":
        return Work(self.operations * times, self.in_8_bits * times, self.read * times)


def attended(start: int, end: int, window: int | None) -> int:
    """Tokens that those at start … end − 1 look at, together: Σ min(t + 1, window).

    >>> attended(0, 4, None), attended(2, 4, None), attended(0, 4, 2)
    (10, 7, 7)
    """

    def up_to(n: int) -> int:
        rising = min(n, window or n)
        return rising * (rising + 1) // 2 + (n - rising) * rising

    return up_to(end) - up_to(start)


def reads_share(layer: Layer, hidden: int) -> float:
    """Share of a layer's weights that a token reads: of a mixture, not the experts that are left out."""
    if layer.experts is None:
        return 1.0
    experts = layer.experts
    each = experts.params / experts.count or 3 * hidden * experts.inner
    whole = layer.params + experts.params
    return max(0.0, 1 - (experts.count - experts.active) * each / whole) if whole else 1.0


def layer_weights(shape: ModelShape) -> float:
    """Weights of all layers that each token is multiplied with."""
    return sum(
        count * reads_share(layer, shape.hidden) * (layer.params + (layer.experts.params if layer.experts else 0))
        for layer, count in shape.kinds.items()
    )


def adapter_weights(shape: ModelShape, rank: int) -> float:
    """The same of an adapter on all of them."""
    return rank * sum(count * reads_share(layer, shape.hidden) * layer.adapter for layer, count in shape.kinds.items())


def attention(shape: ModelShape, *, start: int, end: int) -> float:
    """Operations of one sequence's tokens start … end − 1: scores, and sums of values by them.

    Σ_layers 4 · queries · attended
    """
    return sum(count * 4 * layer.queries * attended(start, end, layer.window) for layer, count in shape.kinds.items())


def head(shape: ModelShape, tokens: float) -> float:
    """Operations of the vocabulary head: 2 · N · V · H."""
    return 2 * tokens * shape.vocab * shape.hidden


def weights_read(shape: ModelShape, *, bits: int | None, width: int, with_head: bool) -> float:
    """Bytes that a pass reads of the base, however few its tokens: layers, and the head where it is used."""
    mean_share = layer_weights(shape) / max(1, _all_weights(shape))
    of_experts = sum(count * layer.experts.params for layer, count in shape.kinds.items() if layer.experts)
    layers = linear_bytes(shape, bits=bits, width=width) + of_experts * width
    return mean_share * layers + with_head * shape.vocab * shape.hidden * width


def _all_weights(shape: ModelShape) -> int:
    return shape.linear_params + sum(
        count * layer.experts.params for layer, count in shape.kinds.items() if layer.experts
    )
