"""Architectures whose layers are known, and the published sizes of common models."""

from typing import Any

FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)
COUNTS = FIELDS[1:-1]
BOUNDED = ("sliding_attention", "chunked_attention")


# What a configuration of each architecture does not say, in terms of ModelShape.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma2": {"norms": 4, "wide_norms": True},
}


def _sizes(kind: str, *counts: int, **others) -> dict[str, Any]:
    return dict(zip(FIELDS, (kind, *counts, others.pop("tied", False)), strict=True)) | others


# From the published config.json of each.
BUILT_IN: dict[str, dict[str, Any]] = {
    "llama-2-7b": _sizes("llama", 32000, 4096, 11008, 32, 32, 32, 128),
    "llama-2-13b": _sizes("llama", 32000, 5120, 13824, 40, 40, 40, 128),
    "mistral-7b": _sizes("mistral", 32000, 4096, 14336, 32, 32, 8, 128, sliding_window=4096),
    "llama-3.1-8b": _sizes("llama", 128256, 4096, 14336, 32, 32, 8, 128),
    "llama-3.1-70b": _sizes("llama", 128256, 8192, 28672, 80, 64, 8, 128),
    "qwen2.5-7b": _sizes("qwen2", 152064, 3584, 18944, 28, 28, 4, 128),
    "qwen3-8b": _sizes("qwen3", 151936, 4096, 12288, 36, 32, 8, 128),
    "gemma-2-9b": _sizes("gemma2", 256000, 3584, 14336, 42, 16, 8, 256, tied=True, sliding_window=4096),
}


def windows_of(config: dict[str, Any], layers: int) -> tuple[int | None, ...]:
    """Of each layer, how many tokens it looks back; None: all of them."""
    window = config.get("sliding_window") or config.get("attention_chunk_size")
    if not isinstance(window, int) or not window or config.get("use_sliding_window", True) is False:
        return (None,) * layers
    kinds = config.get("layer_types")
    if kinds is None and config.get("model_type") == "gemma2":
        kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    if kinds is None and "max_window_layers" in config:  # qwen2, qwen3: the first ones see all
        kinds = ["full_attention"] * config["max_window_layers"] + ["sliding_attention"] * layers
    kinds = kinds or ["sliding_attention"] * layers
    return tuple(window if kind in BOUNDED else None for kind in (*kinds, *["full_attention"] * layers)[:layers])
