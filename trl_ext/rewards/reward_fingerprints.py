"""What a run's record says of its rewards: enough to tell that another score would come of the same completion."""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from trl_ext.rewards.learned_reward import LearnedReward
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.fingerprints import model_fingerprint, tensors_fingerprint

SPEED = {"device", "batch_size"}  # settings that change no score
WEIGHT_FILES = {".safetensors", ".bin"}
BEGINNING = 2**20  # bytes of such a file: names, shapes and the first numbers
UNUSED = "original_module"  # what PEFT keeps of a head that an adapter has one of its own in place of: random, and never asked
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def reward_settings(rewards: list[Callable]) -> dict[str, Any]:
    """By a reward's name: the settings of one that is a dataclass or partial, of a model its weights' fingerprint.

    What a function does is not looked at: it may be mended between two starts of a run.
    """
    return {reward.__name__: _settings(getattr(reward, "__wrapped__", reward)) for reward in rewards}


def same_reward(one: Callable, other: Callable) -> bool:
    """Whether two rewards are the same, whatever forms they were given in: a reward model by its weights, not by its path."""
    one, other = (getattr(reward, "__wrapped__", reward) for reward in (one, other))
    if isinstance(one, LearnedReward) and isinstance(other, LearnedReward):
        return _settings(one) == _settings(other)
    return one is other or (type(one) is type(other) and bool(one == other))  # as value objects are


def check_distinct(rewards: Sequence[Callable], *, call: str) -> None:
    """Raise a ValueError for the first of several rewards that is there twice."""
    for place, reward in enumerate(rewards):
        earlier = next((i for i, other in enumerate(rewards[:place]) if same_reward(reward, other)), None)
        if earlier is not None:
            raise ValueError(
                f"{call}: member {place} is the same as member {earlier}, and adds nothing. Leave it out, or give another."
            )


def _settings(value: Any) -> Any:
    if isinstance(value, LearnedReward):
        head = tensors_fingerprint(
            (name, p) for name, p in value.module.named_parameters() if UNUSED not in name.split(".")
        )
        return {"weights": head, "max_length": value.max_length, "eos_token_ids": sorted(value.eos_token_ids)}
    if isinstance(value, PreTrainedTokenizerBase):
        return tokenizer_fingerprint(value)
    if isinstance(value, nn.Module):
        return model_fingerprint(value)
    if isinstance(value, functools.partial):
        return {"function": _settings(value.func), **{name: _settings(v) for name, v in value.keywords.items()}}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _settings(getattr(value, f.name)) for f in fields(value) if f.name not in SPEED}
    if isinstance(value, list | tuple):
        return [_settings(item) for item in value]
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, str | PathLike):
        return Path(value).name + _weights_in(Path(value))  # of a folder that may have moved
    if value is None or isinstance(value, bool | int | float):
        return value
    return getattr(value, "__name__", type(value).__name__) if callable(value) else ADDRESS.sub("", repr(value))


def _weights_in(folder: Path) -> str:
    """Of a model's folder what its files of weights, or those one folder below, begin with; nothing of any other text."""
    found = [*folder.glob("*.*"), *folder.glob("*/*.*")] if folder.name and os.path.isdir(folder) else []
    files = sorted(file for file in found if file.suffix in WEIGHT_FILES)
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as content:
            digest.update(content.read(BEGINNING))
    return f" {digest.hexdigest()}" if files else ""
