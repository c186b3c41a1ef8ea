"""A decoder and its layers, as far as memory depends on them. Sizes are counts of numbers, of weights or of one token."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial


@dataclass(frozen=True)
class Norm:
    """What a norm reads.

    Args:
        numbers: Of a token.
        groups: Parts of them that are scaled apart, such as heads.
        states: How often it keeps them, in fp32: an RMS norm its input alone.
        wide: Whether it multiplies with its weight in fp32, so that a trained one keeps x / rms in fp32.
        by_torch: Whether it is torch's LayerNorm, whose kernel keeps its input as it comes, a mean and 1/σ; others
            are spelled out in fp32.
    """

    numbers: int
    groups: int = 1
    states: int = 1
    wide: bool = False
    by_torch: bool = False


@dataclass(frozen=True)
class Experts:
    """A mixture of experts whose weights are stacked, which bitsandbytes leaves as they are.

    Args:
        count, active: Experts, and how many read a token.
        inner: I of one.
        params: Weights of all.
        adapted: Whether PEFT's LoRA on all linear layers is on them too; it adds its product to a copy of all weights.
        states: How many states of I numbers each keeps: with SiLU 4, both halves, the activation and the product.
    """

    count: int
    active: int
    inner: int
    params: int
    adapted: bool = False
    states: int = 4


@dataclass(frozen=True)
class Layer:
    """A decoder layer.

    Args:
        linears: (in, out) of its linear layers, which are quantised and adapted.
        adapter: Weights of a LoRA of rank 1.
        queries, keys: Numbers of all heads' queries, and of all heads' keys, as many as of their values.
        heads, kv_heads: Of attention.
        inner: I: numbers inside the MLP; 0 where there are only experts.
        mlp_kept: Numbers that the MLP keeps: of a gated one 4 I, the gate, its activation, the other half and their
            product.
        keeps_result: Whether the MLP's activation keeps its result, as ReLU does, so that an adapter's copy is one more.
        drops: Whether training drops numbers of what attention and the MLP make.
        copies_output: Whether attention's output is copied for the layer that reads it, since its heads come first: so
            where queries are cut out of one product with keys and values, or rotated in part.
        fused: Whether one linear layer makes both halves of the gated MLP.
        norms: Its norms.
        reads: Hidden states that linear layers read: of attention and of the MLP, or one that both share.
        window: Tokens that its keys and values are kept of; None: all.
        experts: Of a mixture.
        scores: Whether attention keeps its matrix of scores (no fused kernel).
        narrow: Whether their softmax is in compute precision, as where attention has sinks.
        by_math: Whether torch's attention falls back to products in fp32, since queries share one head of keys as it is.
        assumed: What is guessed of it, in words.
    """

    linears: tuple[tuple[int, int], ...]
    adapter: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    inner: int
    mlp_kept: int
    norms: tuple[Norm, ...]
    reads: int = 2
    keeps_result: bool = False
    drops: bool = False
    copies_output: bool = False
    fused: bool = False
    window: int | None = None
    experts: Experts | None = None
    scores: bool = False
    narrow: bool = False
    by_math: bool = False
    assumed: str = ""

    @property
    def params(self) -> int:
        """Weights of the linear layers, without biases: what is quantised."""
        return sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def largest_linear(self) -> int:
        return max((inputs * outputs for inputs, outputs in self.linears), default=0)


@dataclass(frozen=True)
class ModelShape:
    """A decoder of RMS norms, attention by rotary positions and a gated MLP; all sizes are counts of numbers.

    Args:
        name: For messages.
        vocab, hidden, intermediate, layers, heads, kv_heads, head_dim: V, H, I, and so on.
        tied: Whether embeddings and vocabulary head are one matrix.
        qkv_bias, output_bias, mlp_bias: Which linear layers have biases.
        qk_norm: Whether queries and keys are normalised per head.
        norms: Norms of H numbers per layer.
        wide_norms: Whether they multiply with their weights in fp32.
        windows: Of each layer, the tokens that its keys and values are kept of; None: all.
        counted: Of another decoder, its layers one by one.
        rest: With these, its weights outside linear layers, embeddings and head.
        refuses_adapter: Whether PEFT refuses a LoRA on all of its linear layers.
        refuses_bits: Whether bitsandbytes leaves its linear layers as they are, which are of a class of their own.
    """

    name: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norms: int = 2
    wide_norms: bool = False
    windows: tuple[int | None, ...] = ()
    counted: tuple[Layer, ...] = ()
    rest: int = 0
    refuses_adapter: bool = False
    refuses_bits: bool = False

    @property
    def queries(self) -> int:
        """Numbers of all heads' queries of one token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Numbers of all heads' keys, and of their values, of one token."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of the linear layers of one block: q, k, v, o, gate, up, down."""
        H, Q, K, I = self.hidden, self.queries, self.keys, self.intermediate  # noqa: E741
        return (H, Q), (H, K), (H, K), (Q, H), (H, I), (H, I), (I, H)

    @cached_property
    def kinds(self) -> dict[Layer, int]:
        """Its different layers, and how many there are of each."""
        layers = self.counted or map(self._layer, self.windows or (None,) * self.layers)
        return dict(Counter(layers))

    def _layer(self, window: int | None) -> Layer:
        norm = partial(Norm, wide=self.wide_norms)
        heads = (norm(self.queries, self.heads), norm(self.keys, self.kv_heads)) if self.qk_norm else ()
        return Layer(
            linears=self.linears,
            adapter=sum(inputs + outputs for inputs, outputs in self.linears),
            queries=self.queries,
            keys=self.keys,
            heads=self.heads,
            kv_heads=self.kv_heads,
            inner=self.intermediate,
            mlp_kept=4 * self.intermediate,
            norms=heads + (norm(self.hidden),) * self.norms,
            window=window,
        )

    @property
    def linear_params(self) -> int:
        """Weights of the linear layers of all blocks, without biases: what is quantised."""
        return sum(count * layer.params for layer, count in self.kinds.items())

    @property
    def largest_linear(self) -> int:
        return max(layer.largest_linear for layer in self.kinds)

    @property
    def small_params(self) -> int:
        """Biases and norms, of all blocks and of the last norm; where they are stacked also experts."""
        if self.counted:
            return self.rest
        biases = self.qkv_bias * (self.queries + 2 * self.keys) + self.output_bias * self.hidden
        biases += self.mlp_bias * (2 * self.intermediate + self.hidden)
        norms = self.norms * self.hidden + self.qk_norm * 2 * self.head_dim
        return self.layers * (biases + norms) + self.hidden

    @property
    def embedding_params(self) -> int:
        return self.vocab * self.hidden

    @property
    def head_params(self) -> int:
        """Of a vocabulary head of its own; 0 where it is tied."""
        return 0 if self.tied else self.embedding_params

    @property
    def params(self) -> int:
        return self.linear_params + self.small_params + self.embedding_params + self.head_params

    @property
    def assumed(self) -> tuple[str, ...]:
        """What is guessed of its layers, in words."""
        return tuple(dict.fromkeys(layer.assumed for layer in self.kinds if layer.assumed))
