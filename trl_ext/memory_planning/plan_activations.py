"""Bytes of what a pass through the model computes: kept for the backward pass, or alive for a moment.

Shapes: `N` tokens of the pass (rows × length), `H` hidden, `I` intermediate, `Q` and `K` numbers of all queries and of all
keys of a token, `V` vocabulary, `c` bytes of a number in the compute precision.
"""

from trl_ext.memory_planning.layer_kinds import Norm
from trl_ext.memory_planning.layer_pass import Pass


def norms_kept(run: Pass) -> int:
    """Norms of a layer: each keeps its input in fp32 and 1/rms per token and group; a trained one also x / rms.

        Σ_norms 4 N (states · numbers + groups) + [trained] c N numbers, or 4 N numbers of a wide one

    Without 16 bits the input is the residual stream itself, which nothing else keeps.
    """
    return sum(_norm_kept(norm, run) for norm in run.layer.norms)


def _norm_kept(norm: Norm, run: Pass) -> int:
    if norm.by_torch:  # its kernel: the input as it comes (in fp32 under CUDA's autocast), a mean and 1/σ
        width = 4 if run.cuda and run.autocast else run.width
        return run.tokens * (width * norm.numbers + 8 * norm.groups)
    trained = (4 if norm.wide else run.width) * norm.numbers if run.trains_all else 0
    return run.tokens * (4 * (norm.states * norm.numbers + norm.groups) + trained)


def attention_kept(run: Pass) -> int:
    """Attention of a layer, without the matrix of scores: q, k, v, output, one number per head, and the mask.

        c N (2 Q + 2 K′) + 4 N heads + c · rows · length² + scores

    K′ = Q where several heads share keys: beside a mask of padding, each gets a copy. The mask is in compute precision.
    """
    layer, keys = run.layer, run.layer.queries  # of a batch with padding
    square = run.rows * run.length**2 if layer.heads else 0
    scores = scores_bytes(run)
    if layer.by_math:  # q, k and v in fp32, and neither a number per head nor the mask
        return run.tokens * layer.queries * (3 * 4 + run.width) + scores
    return (
        run.width * run.tokens * (2 * layer.queries + 2 * keys)
        + 4 * run.tokens * layer.heads
        + run.width * square
        + scores
    )


def scores_bytes(run: Pass) -> int:
    """The matrix of scores where no fused kernel spares it: (4 + [16 bits] c) · heads · rows · length².

    Where its softmax is in compute precision c alone, and where torch falls back to fp32 4.
    """
    if not (run.layer.scores or run.layer.by_math):
        return 0
    width = 4 + run.width % 4
    if run.layer.by_math or run.layer.narrow:
        width = 4 if run.layer.by_math else run.width
    return width * run.layer.heads * run.rows * run.length**2


def linears_kept(run: Pass) -> int:
    """Inputs of the linear layers and of the gate, apart from the output of attention, and what LoRA's A makes.

    c N (H + H + 4 I) + c N r · 7 + [each adapter copies its input] c N (3 H + Q), for q, k, v, o, gate, up, down
    """
    layer = run.layer
    adapters = run.width * run.tokens * run.rank * len(layer.linears)
    once = (layer.reads if layer.inner else 1) * run.shape.hidden + layer.inner
    copies = layer.queries * layer.copies_output
    if run.copies_inputs:
        copies = max(sum(inputs for inputs, _ in layer.linears) - once, 0) + layer.keeps_result * layer.inner
    return layer.reads * run.state + run.width * run.tokens * (layer.mlp_kept + copies) + adapters


def experts_kept(run: Pass) -> int:
    """A mixture's: of each token and expert that reads it, the state twice and its inner ones; the router's choice.

        c N k (2 H + s I) + 32 N k + 4 N E + [adapted] c · (all experts' weights)

    PEFT multiplies with a copy of the weights, to which it has added its own. Where all weights stay as they are, nothing
    needs what they read: H + (s − 1) I.
    """
    experts = run.layer.experts
    if experts is None:
        return 0
    pairs = run.tokens * experts.active
    merged = run.width * experts.params if experts.adapted and run.rank else 0
    choice = 32 * pairs + 4 * run.tokens * experts.count
    numbers = 2 * run.shape.hidden + experts.states * experts.inner
    if experts.params and not (run.trains_all or experts.adapted):
        numbers -= run.shape.hidden + experts.inner
    return run.width * pairs * numbers + choice + merged


def layer_kept(run: Pass) -> int:
    """All that one layer keeps for its backward pass."""
    computed = norms_kept(run) + attention_kept(run) + linears_kept(run) + experts_kept(run)
    return computed + dropout_kept(run) + cast_weights(run)


def dropout_kept(run: Pass) -> int:
    """What was dropped of attention's states and the MLP's: 2 N H, a byte each; on a CPU as wide as the states."""
    return run.layer.drops * 2 * (run.tokens * run.shape.hidden if run.cuda else run.residual)


def cast_weights(run: Pass) -> int:
    """A layer's frozen weights in c bytes, kept for the gradient of their inputs; of trained ones see `cached_casts`."""
    return run.width * run.layer.params if run.cast and run.bits is None and not run.trains_all else 0


def cached_casts(run: Pass) -> int:
    """All trained weights in c bytes, which autocast makes once and keeps until the loss is there."""
    return run.width * run.shape.linear_params if run.cast and run.trains_all else 0


def int8_kept(run: Pass) -> int:
    """Inputs of a layer's 8-bit linear layers, which checkpointing cannot drop, nor the backward pass free one by one.

        c N (H + H + Q + I)

    bitsandbytes holds them beside autograd's saved tensors, as long as the graph lives.
    """
    layer = run.layer
    numbers = layer.reads * run.shape.hidden + layer.queries + layer.inner
    return run.width * run.tokens * numbers if run.bits == 8 else 0


def layer_backward(run: Pass) -> int:
    """The largest moment of a layer's backward pass beyond what is kept: in the MLP, where two gradients meet.

    c N H + 2 c N I, or, where adapters copy their inputs, 3 c N I while the last is copied: itself, and in fp32
    """
    return run.residual + (3 if run.copies_inputs else 2) * run.inner


def layer_forward(run: Pass) -> int:
    """The largest moment of a layer without gradients: the MLP's at its up projection, or attention's.

        3 c N H + max(c N 3 I, or with an adapter 2 c N I + 2 a N I + [a > c] a N H; attention)

    Where one linear layer makes gate and up: 4 I, with an adapter c N 2 I + 4 a N I.

    The states are the layer's input, the residual and its norm. With an adapter: silu(gate), up, the adapter's part and
    their sum, of a bytes each; a is 4 outside autocast.
    """
    layer, adapter = run.layer, run.width if run.autocast else 4
    mlp = (4 if layer.fused else 3) * run.inner
    if run.rank:
        mlp = 2 * run.inner + (4 if layer.fused else 2) * adapter * run.tokens * layer.inner
        mlp += adapter * run.tokens * run.shape.hidden if adapter > run.width else 0
    square = run.rows * run.length**2
    attention = run.width * run.tokens * (4 * layer.queries + 2 * layer.keys) + run.width * square
    attention += scores_bytes(run) * (
        4 if layer.narrow else 2
    )  # before and after softmax; with sinks, and less the largest
    return 3 * run.state + max(mlp, attention, experts_forward(run))


def experts_forward(run: Pass) -> int:
    """The largest moment of a mixture without gradients."""
    experts = run.layer.experts
    if experts is None:
        return 0
    merged = run.width * experts.params if experts.adapted and run.rank else 0
    return run.width * run.tokens * experts.active * (run.shape.hidden + 3 * experts.inner) + merged


def one_weight(run: Pass) -> int:
    """The largest weight in compute precision: 8-bit and NF4 dequantise one after the other in the backward pass.

    Then one gradient of the MLP is not there yet, so that only what is larger counts. Forward, the kernels read 8-bit and
    NF4 weights as they are.
    """
    if run.bits is None:
        return 0
    return max(0, run.width * run.layer.largest_linear - run.inner)


def mask_bytes(run: Pass) -> int:
    """Who may look at whom, once per pass and kind of window: rows · length² bytes."""
    windows = {layer.window for layer in run.shape.kinds}
    return len(windows) * run.rows * run.length**2
