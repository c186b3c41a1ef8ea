"""What a decoder layer is made of, told by its modules; what they do not tell is assumed, and said.

H is the hidden size, Q and K are numbers of all queries and of all keys of a token, I is the MLP's inner size.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from trl_ext.memory_planning.layer_kinds import Experts, Layer, Norm

HEAD_SIZES = ("head_dim", "qk_head_dim", "v_head_dim", "head_size")  # of queries and keys, of values
ACTIVE_EXPERTS = ("num_experts_per_tok", "moe_topk", "top_k", "moe_k", "experts_per_token", "moe_top_k")
ACTIVATIONS = ("act_fn", "act", "activation_fn", "activation", "activation_func")
FEEDS = ("mlp", "feedforward", "ffn")  # of the names of modules that look at one token alone
MIXED = (*FEEDS, "moe", "expert")


def layer_of(layer: nn.Module, window: int | None, config: PreTrainedConfig, hidden: int) -> Layer:
    """A layer of the model that a configuration describes; the weights of its adapter are not counted yet."""
    mixer = next((part for name, part in layer.named_modules() if name and _is_attention(part)), None)
    heads = _heads(mixer, config, hidden)
    if heads is None:
        return _unknown_layer(layer, hidden)
    inside = set(mixer.modules())
    experts, listed = _experts(layer, config, hidden)
    mlps = [_mlp(part, hidden) for part in layer.modules() if part not in inside | listed]
    inner, kept, result = (sum(numbers) for numbers in zip((0, 0, False), *mlps, strict=True))
    norms = tuple(_norms(layer, heads, hidden))
    unsaid = [heads.pop("assumed"), _unsaid(layer, inside | listed, known=bool(inner or experts))]
    return Layer(
        linears=tuple(_size(part) for part in linears_of(layer)),
        adapter=0,
        inner=inner,
        mlp_kept=kept + heads.pop("latent"),
        keeps_result=bool(result),
        drops=_drops(layer),
        norms=norms,
        copies_output=len(linears_of(mixer)) == 2 or _rotates_in_part(config),
        fused=any(size == (hidden, 2 * inner) for size in map(_size, linears_of(layer))) and kept >= 4 * inner > 0,
        reads=1 if sum(norm.numbers == hidden for norm in norms) == 1 else 2,
        window=window,
        experts=experts,
        scores=config._attn_implementation == "eager",
        narrow=hasattr(mixer, "sinks"),
        by_math=_attends_by_math(mixer, config),
        assumed=" and ".join(filter(None, unsaid)),
        **heads,
    )


def _unknown_layer(layer: nn.Module, hidden: int) -> Layer:
    """A layer without attention: all that its linear layers read and make is taken to be kept."""
    sizes = [_size(part) for part in linears_of(layer)]
    return Layer(
        linears=tuple(sizes),
        adapter=0,
        queries=0,
        keys=0,
        heads=0,
        kv_heads=0,
        inner=max((max(size) for size in sizes), default=hidden),
        mlp_kept=sum(inputs + outputs for inputs, outputs in sizes),
        norms=(Norm(hidden), Norm(hidden)),
        assumed="a layer without attention",
    )


def linears_of(module: nn.Module) -> list[nn.Linear | Conv1D]:
    """All linear layers of a module; bitsandbytes quantises them, PEFT adapts them."""
    return [part for part in module.modules() if isinstance(part, nn.Linear | Conv1D)]


def _size(linear: nn.Linear | Conv1D) -> tuple[int, int]:
    """(in, out)"""
    return (linear.nx, linear.nf) if isinstance(linear, Conv1D) else (linear.in_features, linear.out_features)


def _is_attention(module: nn.Module) -> bool:
    """Whether a part attends, and is not a layer, named after what it has, that has an MLP beside."""
    kind = type(module).__name__.lower()
    feeds = any(_named(name, part, FEEDS) for name, part in module.named_children())
    other = feeds or "norm" in kind or "linear" in kind
    return "attention" in kind and not other and bool(linears_of(module))


def _named(name: str, part: nn.Module, words: tuple[str, ...]) -> bool:
    """Whether the name of a part or of its class has one of some words."""
    return any(word in (name + type(part).__name__).lower() for word in words)


def _heads(mixer: nn.Module | None, config: PreTrainedConfig, hidden: int) -> dict | None:
    """Q, K and heads of attention, of which all linear layers together make Q + 2 K + H; None where there are no heads.

    What they make beyond that (a gate, latent states) is taken to be kept, and so is a K that nobody names.
    """
    heads = getattr(config, "num_attention_heads", None)
    if mixer is None or not isinstance(heads, int) or heads < 1:
        return None
    head_dim = _head_dim(mixer) or _head_dim(config) or hidden // heads
    kv_heads = getattr(config, "num_key_value_heads", None)
    made = sum(_size(part)[1] for part in linears_of(mixer)) - hidden - heads * head_dim
    if made == 2 * heads * head_dim or not isinstance(kv_heads, int):  # each head has keys, or some share
        kv_heads = max(made // (2 * head_dim), 1)
    latent = made - 2 * kv_heads * head_dim
    return {
        "queries": heads * head_dim,
        "keys": kv_heads * head_dim,
        "heads": heads,
        "kv_heads": kv_heads,
        "latent": max(latent, 0),
        "assumed": "attention of another kind" if latent else "",
    }


def _head_dim(source: nn.Module | PreTrainedConfig) -> int:
    """The largest size of a head that a module or configuration names; 0 if none."""
    sizes = [getattr(source, name, None) for name in HEAD_SIZES]
    return max([size for size in sizes if isinstance(size, int)], default=0)


def _rotates_in_part(config: PreTrainedConfig) -> bool:
    share = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor")
    share = getattr(config, "partial_rotary_factor", None) if share is None else share
    return isinstance(share, float) and share < 1


def _attends_by_math(mixer: nn.Module, config: PreTrainedConfig) -> bool:
    """Whether torch is handed one head of keys for all queries (Falcon), of which no fused kernel knows."""
    one_head = getattr(mixer, "multi_query", False) and not getattr(mixer, "new_decoder_architecture", False)
    return bool(config.model_type == "falcon" and one_head and config._attn_implementation == "sdpa")


def _drops(layer: nn.Module) -> bool:
    """Whether training drops numbers of a layer's states; dropout inside attention leaves nothing but a seed."""
    modules = [part for name, part in layer.named_modules() if "attn" not in name.rpartition(".")[2]]
    share = getattr(layer, "dropout", 0)
    return any(isinstance(part, nn.Dropout) and part.p > 0 for part in modules) or (
        isinstance(share, float) and share > 0
    )


def _mlp(module: nn.Module, hidden: int) -> tuple[int, int, bool]:
    """I of an MLP right below a module, the numbers that it keeps of a token, and whether its activation keeps its result.

    The last linear layer that makes a state is the one down, the others are up: I numbers, or twice that with a gate.
    """
    sizes = [_size(part) for part in module.children() if isinstance(part, nn.Linear | Conv1D)]
    down = max((i for i, size in enumerate(sizes) if size[1] == hidden), default=None)
    if down is None:
        return 0, 0, False
    inner = sizes[down][0]
    up = sum(outputs for i, (inputs, outputs) in enumerate(sizes) if i != down and inputs == hidden)
    if up < inner:
        return 0, 0, False
    kept, result = _activation_kept(module)
    if up >= 2 * inner:  # the other half, and the product, which nothing but the layer down needs
        return inner, inner * (kept + 2), False
    return inner, inner * kept, result


def _activation_kept(module: nn.Module) -> tuple[int, bool]:
    """States that an activation keeps, its result among them, as it says on the meta device; whether it needs its result."""
    function = next(
        (getattr(module, name) for name in ACTIVATIONS if callable(getattr(module, name, None))), nn.SiLU()
    )
    numbers, result = numbers_kept(function, 8)
    return numbers // 8, result


def _states_kept(function: Callable, numbers: int, dtype=torch.float32, *, kept=torch.float32) -> int:
    """How many states of so many numbers a function keeps in a precision, of one in `dtype` that is not kept yet."""
    x, saved = torch.empty(3, numbers, device="meta", dtype=dtype, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        function(x)
    return len({t.untyped_storage()._cdata for t in saved if t.shape == x.shape and t.dtype == kept})


def numbers_kept(function: Callable, numbers: int) -> tuple[int, bool]:
    """Numbers of a token that a function of so many keeps, with its result, and whether it needs that itself."""
    x, saved = torch.empty(1, numbers, device="meta", requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        result = function(x)
    kept = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in saved if t.numel() > 1}
    mine = {result.untyped_storage()._cdata: result.untyped_storage().nbytes()}
    return sum((kept | mine).values()) // x.element_size(), mine.keys() <= kept.keys()


def _experts(layer: nn.Module, config: PreTrainedConfig, hidden: int) -> tuple[Experts | None, set[nn.Module]]:
    """A layer's mixture of experts, stacked or listed, and the modules of a list."""
    active = next((value for name in ACTIVE_EXPERTS if isinstance(value := getattr(config, name, None), int)), 1)
    for name, part in layer.named_modules():
        weights = [weight for weight in part.parameters(recurse=False) if weight.dim() == 3]
        if len(weights) > 1:
            down = min(weight.numel() for weight in weights)
            count = weights[0].shape[0]
            params, inner = sum(weight.numel() for weight in weights), down // (count * hidden)
            gate = getattr(part, "_apply_gate", None)
            states = 4 if gate is None else numbers_kept(gate, 2 * inner)[0] // inner
            return Experts(count, active, inner, params, states=states), set()
        if name.endswith("experts") and isinstance(part, nn.ModuleList):
            return Experts(len(part), active, _mlp(part[0], hidden)[0], 0), set(part.modules())
    return None, set()


def _norms(layer: nn.Module, heads: dict, hidden: int) -> Iterator[Norm]:
    """A layer's norms; those of heads are told by their size, and queries from keys by their name."""
    for name, part in layer.named_modules():
        if "norm" not in type(part).__name__.lower():
            continue
        numbers = sum(weight.numel() for key, weight in part.named_parameters(recurse=False) if key == "weight")
        numbers, by_torch, groups = numbers or hidden, isinstance(part, nn.LayerNorm), 1
        if numbers == heads["queries"] // heads["heads"] != hidden:
            side = ("queries", "heads") if name.rpartition(".")[2].startswith("q") else ("keys", "kv_heads")
            numbers, groups = heads[side[0]], heads[side[1]]
        yield Norm(numbers, groups, *_norm_kept(part, numbers // groups), by_torch)


def _norm_kept(norm: nn.Module, numbers: int) -> tuple[int, bool]:
    """States that a frozen norm keeps in fp32, and whether a trained one keeps another, of an input in 16 bits."""
    try:
        frozen = _states_kept(norm.requires_grad_(False), numbers)
        trained = _states_kept(norm.requires_grad_(True), numbers, torch.bfloat16, kept=torch.float32)
    except (RuntimeError, TypeError):  # it reads more than one state, or otherwise cut ones
        return 1, False
    return frozen, trained > frozen


def _unsaid(layer: nn.Module, seen: set[nn.Module], *, known: bool) -> str:
    """What else of the layer has linear layers, and is neither attention nor an MLP."""
    others = [(name, part) for name, part in layer.named_children() if part not in seen and linears_of(part)]
    odd = [name for name, part in others if not _named(name, part, MIXED)]
    odd = [name for name in odd if not isinstance(dict(others)[name], nn.Linear | Conv1D)]
    return "" if known and not odd else f"the part {odd[0]!r}" if odd else "its MLP"
