"""The arguments that vLLM is started with, and the whole policy where that is what it serves."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PretrainedConfig

from trl_ext.generation.protocol import Policy
from trl_ext.generation.vllm_checks import RANKS, installed_vllm, rank_of, served_config, served_dtype

LOG_PROBS = "processed_logprobs"  # of the distribution that a token is drawn from
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")  # vLLM's words
NAMED = (
    "model",
    "dtype",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "max_model_len",
)  # arguments of VLLMGenerator
CPU_CACHE = 2**30  # bytes of keys and values on a CPU, where vLLM itself would take a share of all memory
CPU_CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


def checked_engine_kwargs(given: dict[str, Any] | None) -> dict[str, Any]:
    """Further arguments of `vllm.LLM`, {} of None, or a ValueError where they say what is said elsewhere or are no JSON."""
    call = f"VLLMGenerator(engine_kwargs={given})"
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ValueError(f"{call}: expected a dictionary of arguments of vllm.LLM, got {type(given).__name__}.")
    try:
        json.dumps(given)
    except TypeError as error:
        raise ValueError(
            f"{call}: they go to another process as JSON ({error}). Give numbers, strings, lists and dictionaries."
        ) from error
    named = [name for name in NAMED if name in given]
    if named:
        raise ValueError(f"{call}: {named[0]!r} has an argument of its own. Give VLLMGenerator({named[0]}=…).")
    if "enable_lora" in given:
        raise ValueError(f"{call}: 'enable_lora' follows from the policy, whether it has an adapter. Leave it out.")
    if given.get("logprobs_mode", LOG_PROBS) != LOG_PROBS:
        raise ValueError(
            f"{call}: a sample's log-probabilities are those that it was drawn with, {LOG_PROBS!r}. Leave logprobs_mode out."
        )
    return given


def engine_of(
    policy: Policy, model: str, *, dtype: str, tokens: int, cache: int | None, given: dict[str, Any]
) -> dict[str, Any]:
    """Arguments of `vllm.LLM`.

    Args:
        policy: Whose adapter it is to serve, if it has one.
        model: Id or path that it loads.
        dtype: As `served_dtype` takes it.
        tokens: Longest prompt with completion, rounded up to a power of two within the model's window, so that it is
            seldom started anew for a longer one.
        cache: Bytes of keys and values; None: see `CPU_CACHE`.
        given: Further ones, which go before what is found here.
    """
    config = served_config(model)
    engine = {"model": model, "dtype": served_dtype(config, dtype), "max_model_len": room_for(tokens, config)}
    engine["logprobs_mode"] = LOG_PROBS
    if cache is None and CPU_CACHE_VARIABLE not in os.environ and (installed_vllm() or ("",))[0] == "vllm-cpu":
        cache = CPU_CACHE
    if cache is not None:
        engine["kv_cache_memory_bytes"] = cache
    if policy.model.device.type == "cuda":
        engine["enable_sleep_mode"] = True
        if cache is not None:
            total = torch.cuda.get_device_properties(policy.model.device).total_memory
            engine["gpu_memory_utilization"] = share_of_cache(cache, total)
    if isinstance(policy.model, PeftModel):
        engine |= {"enable_lora": True, "max_lora_rank": next(r for r in RANKS if r >= rank_of(policy.model))}
    return engine | given


def share_of_cache(cache: int, total: int) -> float:
    """The share of a card that vLLM demands to be free at its start, where its keys and values are given in bytes: theirs.

    It takes nothing by that share then, yet would refuse to start if less is free. Not run on a card.

    >>> share_of_cache(6 * 2**30, 24 * 2**30)
    0.25
    """
    if cache > total:
        raise ValueError(
            f"VLLMGenerator(kv_cache_memory_bytes={cache}): the card has {total} bytes in all. Give what the plan says, "
            "trl-ext plan --generator vllm."
        )
    return cache / total


def room_for(tokens: int, config: PretrainedConfig) -> int:
    """The next power of two that is no longer than the window, or what is asked for where that is longer still.

    >>> room_for(300, PretrainedConfig(max_position_embeddings=400)), room_for(129, PretrainedConfig())
    (400, 256)
    """
    window = getattr(config.get_text_config(), "max_position_embeddings", None)
    return max(tokens, min(1 << (tokens - 1).bit_length(), window or 2**31))


def save_whole(policy: Policy, folder: Path) -> str:
    """Save model and tokenizer; returns the path."""
    policy.model.save_pretrained(folder / "policy")
    policy.tokenizer.save_pretrained(folder / "policy")
    return str(folder / "policy")
