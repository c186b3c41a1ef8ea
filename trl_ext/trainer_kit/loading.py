"""Loading models: without noise, whole, and what a damaged checkpoint raises."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PretrainedConfig
from transformers.integrations import deepspeed as asked

# What loading may raise of a checkpoint that is absent, damaged or of something else, besides a plain ValueError.
DAMAGED = (
    OSError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    json.JSONDecodeError,
    SafetensorError,
    StrictDataclassError,
)


@contextmanager
def whole_loading() -> Iterator[None]:
    """Whole also where ZeRO-3 is asked for: else transformers would cut each model as it loads it, and leave nothing to read.

    What is trained is cut later, by the engine; what only scores stays whole.
    """
    config = asked._hf_deepspeed_config_weak_ref
    asked._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        if asked._hf_deepspeed_config_weak_ref is None:  # else a trainer was made meanwhile, and has its own
            asked._hf_deepspeed_config_weak_ref = config


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Whole, without transformers' report of weights that a checkpoint has too few or too many, where that is dealt with."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with whole_loading():
            yield
    finally:
        transformers.logging.set_verbosity(level)


@contextmanager
def loading(call: str) -> Iterator[None]:
    """Raise a ValueError for whatever keeps a model from being loaded or moved; `call` says who asked for which."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{call}: the memory that is free cannot hold it ({why_unloadable(error)}). Give a smaller dtype or model, or "
            "another device."
        ) from error
    except (*DAMAGED, ValueError) as error:
        raise ValueError(
            f"{call}: it cannot be loaded ({why_unloadable(error)}). Give a folder written by save_pretrained, or a hub id "
            "that can be reached or was downloaded before."
        ) from error


def loaded_bits(config: PretrainedConfig) -> int:
    """In how many bits bitsandbytes has loaded a model's weights; 0: they are as the checkpoint is."""
    how = getattr(config, "quantization_config", None)
    told = how if isinstance(how, dict) else {} if how is None else how.to_dict()
    return next((bits for bits in (8, 4) if told.get(f"load_in_{bits}bit")), 0)


def why_unloadable(error: Exception) -> str:
    """What loading has raised, in one line: its first one, with the kind of error where that alone says little.

    >>> why_unloadable(OSError("no model there\\nmore")), why_unloadable(KeyError("FOO"))
    ('no model there', "KeyError: 'FOO'")
    """
    line = (str(error).strip().splitlines() or [""])[0]
    speaks = line and isinstance(error, OSError | ValueError)
    return line if speaks else f"{type(error).__name__}: {line}".removesuffix(": ")
