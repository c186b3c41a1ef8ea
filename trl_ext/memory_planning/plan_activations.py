"""Bytes of what a pass through the model computes: kept for the backward pass, or alive for a moment.

Shapes: `N` tokens of the pass (rows × length), `H` hidden, `I` intermediate, `Q` and `K` numbers of all queries and of all
keys of a token, `V` vocabulary, `c` bytes of a number in the compute precision.
"""

from dataclasses import dataclass

from trl_ext.memory_planning.model_shapes import ModelShape

TILE_TOKENS, TILE_VOCABULARY = 4096, 32768  # of TRL's fused vocabulary head, which makes logits in such tiles


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

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def state(self) -> int:
        """One hidden state of all tokens: c · N · H."""
        return self.width * self.tokens * self.shape.hidden

    @property
    def inner(self) -> int:
        """One state inside the MLP: c · N · I."""
        return self.width * self.tokens * self.shape.intermediate

    @property
    def copies_inputs(self) -> bool:
        """Whether each adapter keeps its own copy of its input: PEFT turns it to fp32, and autocast back to 16 bits.

        Not on a quantised base, whose layers leave that to autocast.
        """
        return bool(self.rank) and self.autocast and self.width == 2 and self.bits is None


def norms_kept(run: Pass) -> int:
    """RMS norms of a layer: each keeps its input in fp32 and 1/rms per token; a trained one also x / rms.

        norms · (4 N H + 4 N + [trained] c N H)

    Without 16 bits the input is the residual stream itself, which nothing else keeps.
    """
    one = 4 * run.tokens * (run.shape.hidden + 1) + (run.state if run.trains_all else 0)
    return run.shape.norms * one + _head_norms_kept(run)


def _head_norms_kept(run: Pass) -> int:
    """Norms of each head's queries and keys, where the architecture has them."""
    shape = run.shape
    if not shape.qk_norm:
        return 0
    numbers = shape.queries + shape.keys
    trained = run.width * numbers if run.trains_all else 0
    return run.tokens * (4 * numbers + 4 * (shape.heads + shape.kv_heads) + trained)


def attention_kept(run: Pass) -> int:
    """Attention of a layer, without the matrix of scores: q, k, v, output, one number per head, and the mask.

        c N (2 Q + 2 K′) + 4 N heads + c · rows · length²

    K′ = Q where several heads share keys: beside a mask of padding, each gets a copy. The mask is in compute precision.
    """
    shape, keys = run.shape, run.shape.queries  # of a batch with padding
    mask = run.width * run.rows * run.length**2
    return run.width * run.tokens * (2 * shape.queries + 2 * keys) + 4 * run.tokens * shape.heads + mask


def linears_kept(run: Pass) -> int:
    """Inputs of the linear layers and of the gate, apart from the output of attention, and what LoRA's A makes.

    c N (H + H + 4 I) + c N r · 7 + [each adapter copies its input] c N (3 H + Q)
    """
    adapters = run.width * run.tokens * run.rank * len(run.shape.linears)
    copies = run.width * run.tokens * (3 * run.shape.hidden + run.shape.queries) if run.copies_inputs else 0
    return 2 * run.state + 4 * run.inner + adapters + copies


def layer_kept(run: Pass) -> int:
    """All that one layer keeps for its backward pass."""
    return norms_kept(run) + attention_kept(run) + linears_kept(run)


def int8_kept(run: Pass) -> int:
    """Inputs of a layer's 8-bit linear layers, which checkpointing cannot drop, nor the backward pass free one by one.

        c N (H + H + Q + I)

    bitsandbytes holds them beside autograd's saved tensors, as long as the graph lives.
    """
    shape = run.shape
    numbers = 2 * shape.hidden + shape.queries + shape.intermediate
    return run.width * run.tokens * numbers if run.bits == 8 else 0


def layer_backward(run: Pass) -> int:
    """The largest moment of a layer's backward pass beyond what is kept: in the MLP, where two gradients meet.

    c N H + 2 c N I, or, where adapters copy their inputs, 3 c N I while the last is copied: itself, and in fp32
    """
    return run.state + (3 if run.copies_inputs else 2) * run.inner


def layer_forward(run: Pass) -> int:
    """The largest moment of a layer without gradients: the MLP's at its up projection, or attention's.

        3 c N H + max(c N 3 I, or with an adapter 2 c N I + 2 a N I + [a > c] a N H; attention)

    The states are the layer's input, the residual and its norm. With an adapter: silu(gate), up, the adapter's part and
    their sum, of a bytes each; a is 4 outside autocast.
    """
    shape, adapter = run.shape, run.width if run.autocast else 4
    mlp = 3 * run.inner
    if run.rank:
        mlp = 2 * run.inner + 2 * adapter * run.tokens * shape.intermediate
        mlp += adapter * run.tokens * shape.hidden if adapter > run.width else 0
    attention = run.width * run.tokens * (4 * shape.queries + 2 * shape.keys) + run.width * run.rows * run.length**2
    return 3 * run.state + max(mlp, attention)


def one_weight(run: Pass) -> int:
    """The largest weight in compute precision: 8-bit and NF4 dequantise one after the other in the backward pass.

    Then one gradient of the MLP is not there yet, so that only what is larger counts. Forward, the kernels read 8-bit and
    NF4 weights as they are.
    """
    if run.bits is None:
        return 0
    return max(0, run.width * run.shape.largest_linear - run.inner)


def mask_bytes(run: Pass) -> int:
    """Who may look at whom, once per pass: rows · length² bytes."""
    return run.rows * run.length**2


def head_kept(run: Pass, *, scored: int) -> int:
    """The last norm's input and output, and a copy of the states that the vocabulary head reads.

    Args:
        run: Of the policy.
        scored: Tokens whose log-probability is computed.
    """
    return 4 * run.tokens * (run.shape.hidden + 1) + run.state + run.width * scored * run.shape.hidden


def tile(run: Pass, *, scored: int) -> int:
    """Logits of a tile: TRL's fused head holds room for 4096 tokens × 32768 words at most."""
    return run.width * min(scored, TILE_TOKENS) * TILE_VOCABULARY


def head_forward(run: Pass, *, scored: int) -> int:
    """Tiles of logits. On CUDA a kernel reads them in place; on the CPU three arrays in fp32 are made of one."""
    arrays = 0 if run.cuda else 12
    return tile(run, scored=scored) + arrays * _tile_numbers(run, scored)


def head_backward(run: Pass, *, scored: int) -> int:
    """The tile, the gradient of the states in fp32 and then in c bytes, and on the CPU seven arrays and a mask."""
    arrays = 0 if run.cuda else 29
    gradient = (4 + run.width) * scored * run.shape.hidden
    weight = (4 + run.width) * run.shape.embedding_params if run.trains_all else 0
    return tile(run, scored=scored) + arrays * _tile_numbers(run, scored) + gradient + weight


def _tile_numbers(run: Pass, scored: int) -> int:
    return min(scored, TILE_TOKENS) * min(run.shape.vocab, TILE_VOCABULARY)
