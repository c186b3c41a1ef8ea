"""Bytes of what stays in memory: weights, adapters, optimiser states, keys and values. Each follows from shapes."""

import math

from trl_ext.memory_planning.layer_kinds import ModelShape

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4_TABLES = 256 * 4 + 16 * 4 + 4  # of each weight: two code books and an offset


def int8_bytes(rows: int, columns: int) -> int:
    """bitsandbytes' `Linear8bitLt` weight: one byte each, and a scale in fp32 per output row.

    >>> int8_bytes(4, 6)
    40
    """
    return rows * columns + 4 * rows


def nf4_bytes(rows: int, columns: int) -> int:
    """bitsandbytes' NF4 weight with double quantisation.

        n/2 + ⌈n/64⌉ (a scale in 8 bits per block) + 4 ⌈⌈n/64⌉/256⌉ (its own scale) + tables

    >>> nf4_bytes(64, 64) - NF4_TABLES  # 2048 + 64 + 4
    2116
    """
    n = rows * columns
    blocks = math.ceil(n / 64)
    return math.ceil(n / 2) + blocks + 4 * math.ceil(blocks / 256) + NF4_TABLES


def linear_bytes(shape: ModelShape, *, bits: int | None, width: int) -> int:
    """All blocks' linear weights: quantised, or of `width` bytes a number."""
    if bits is None:
        return shape.linear_params * width
    one = int8_bytes if bits == 8 else nf4_bytes
    return sum(
        count * one(outputs, inputs) for layer, count in shape.kinds.items() for inputs, outputs in layer.linears
    )


def base_bytes(shape: ModelShape, *, bits: int | None, width: int, head: bool = True) -> int:
    """A base: its blocks' linear weights, and embeddings, norms, biases and vocabulary head in `width` bytes.

    Args:
        shape: Of the model.
        bits: 8, 4, or None for weights that are not quantised.
        width: Bytes of a number that is not quantised.
        head: Whether it has a vocabulary head; a reward or value model has none.
    """
    rest = shape.small_params + shape.embedding_params + (shape.head_params if head else 0)
    return linear_bytes(shape, bits=bits, width=width) + rest * width


def adapter_params(shape: ModelShape, rank: int) -> int:
    """LoRA on all linear layers of the blocks: A `(r, in)` and B `(out, r)` of each.

    r · Σ (in + out)
    """
    return rank * sum(count * layer.adapter for layer, count in shape.kinds.items())


def optimizer_bytes(params: int, optimizer: str, *, width: int) -> int:
    """AdamW's two running means: in the weights' own precision, or in 8 bits with a scale in fp32 per 256.

    Args:
        params: How many numbers are trained.
        optimizer: "adamw", "adamw_8bit" or "paged_adamw_8bit".
        width: Bytes of a trained number.
    """
    if optimizer == "adamw":
        return 2 * params * width
    return 2 * (params + 4 * math.ceil(params / 256))


def cache_bytes(shape: ModelShape, *, rows: int, tokens: int, width: int) -> int:
    """Keys and values.

    Σ_layers 2 · keys · rows · min(tokens, window) · width
    """
    kept = sum(count * layer.keys * min(tokens, layer.window or tokens) for layer, count in shape.kinds.items())
    return 2 * rows * kept * width
