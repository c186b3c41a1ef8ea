"""What of a plan cannot be together with weights that are cut over several cards: what the trainers refuse, and what does nothing."""

from collections.abc import Iterator
from typing import Any


def check_shard(settings: Any) -> None:
    """Raise a ValueError for the first that is so of `PlanSettings`."""
    for is_so, came, why in _of_one(settings) if settings.shard is None else _of_several(settings):
        if is_so:
            raise ValueError(f"memory_plan({came}): {why}")


def _of_one(s: Any) -> Iterator[tuple[bool, str, str]]:
    yield (
        s.num_gpus > 1,
        f"num_gpus={s.num_gpus}, shard=None",
        "under data parallelism each card holds what one alone does. Leave num_gpus out, or give shard='fsdp2'.",
    )
    yield s.sync_each_batch, "sync_each_batch=True, shard=None", "it does nothing where nothing is cut. Leave it out."


def _of_several(s: Any) -> Iterator[tuple[bool, str, str]]:
    call = f"shard={s.shard!r}"
    yield s.num_gpus < 2, f"{call}, num_gpus={s.num_gpus}", "expected several cards to cut it over. Give num_gpus."
    yield (
        s.bits is not None,
        f"{call}, bits={s.bits}",
        "the trainers refuse a base of 8 or 4 bits that is cut. Give bits=None, or train it on one card, or on several that "
        "hold all of it (SharedBase).",
    )
    roles = 1 + s.has_critic + s.rewards
    yield (
        bool(s.shared) and s.lora is not None and roles > 1,
        f"{call}, shared=True",
        f"{roles} roles on one SharedBase are refused: the base is cut as the part of one, and the others' passes would find "
        "pieces. Give shared=False.",
    )
    yield (
        s.generator != "transformers",
        f"{call}, generator={s.generator!r}",
        "a generator is given whole weights, and what then is where is not known. Leave generator out.",
    )
    yield s.optimizer != "adamw", f"{call}, optimizer={s.optimizer!r}", "it was never tried. Give 'adamw'."
    yield (
        s.sync_each_batch and s.batch == s.micro_batch,
        f"{call}, sync_each_batch=True",
        "it does nothing in a step of one micro-batch. Leave it out.",
    )
