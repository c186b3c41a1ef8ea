"""What of a plan cannot be together with several cards: what the trainers refuse, in their words, and what does nothing."""

from collections.abc import Iterator
from typing import Any

from trl_ext.trainer_kit.engine_words import CUT_BASE, SELF_TRAINING, engine_refusal

ENGINES = {"fsdp2": "FSDP2", "zero2": "DeepSpeed ZeRO-2", "zero3": "DeepSpeed ZeRO-3"}
TRAINERS = {"raft": "RAFTTrainer", "rest": "ReSTTrainer"}  # of those that an engine is refused to
NO_GENERATOR = "a generator is given whole weights, and what then is where is not known. Leave generator out."


def check_shard(settings: Any) -> None:
    """Raise a ValueError for the first that is so of `PlanSettings`."""
    for is_so, came, why in (*_of_cards(settings), *_of_zero(settings), *_of_cutting(settings)):
        if is_so:
            raise ValueError(f"memory_plan({came}): {why}")


def _of_cards(s: Any) -> Iterator[tuple[bool, str, str]]:
    one, call = s.shard is None, f"shard={s.shard!r}"
    yield (
        one and s.num_gpus > 1,
        f"num_gpus={s.num_gpus}, shard=None",
        "under data parallelism each card holds what one alone does. Leave num_gpus out, or give shard='fsdp2'.",
    )
    yield (
        one and s.sync_each_batch,
        "sync_each_batch=True, shard=None",
        "it does nothing where nothing is cut. Leave it out.",
    )
    yield (
        not one and s.num_gpus < 2,
        f"{call}, num_gpus={s.num_gpus}",
        "expected several cards to cut it over. Give num_gpus.",
    )
    yield (
        s.sync_each_batch and not one and not s.is_fsdp,
        f"{call}, sync_each_batch=True",
        "FSDP2 alone keeps whole gradients without. Leave it out.",
    )
    yield (
        s.sync_each_batch and s.batch == s.micro_batch,
        f"{call}, sync_each_batch=True",
        "it does nothing in a step of one micro-batch. Leave it out.",
    )


def _of_zero(s: Any) -> Iterator[tuple[bool, str, str]]:
    call, engine = f"shard={s.shard!r}", ENGINES.get(s.shard, "")
    name = TRAINERS.get(s.method)
    refused = s.is_zero and name is not None
    why = engine_refusal(engine, trainer=name, **SELF_TRAINING) if refused else ""
    yield refused, f"method={s.method!r}, {call}", why
    defaults = type(s).__dataclass_fields__
    for field, of in (("reduce_bucket_size", s.is_zero), ("max_live_parameters", s.shard == "zero3")):
        value = getattr(s, field)
        changed = value != defaults[field].default
        yield changed and not of, f"{call}, {field}={value}", "nothing reads it there. Leave it out."


def _of_cutting(s: Any) -> Iterator[tuple[bool, str, str]]:
    call, roles = f"shard={s.shard!r}", 1 + s.has_critic + s.rewards
    yield (
        s.shards and s.bits is not None,
        f"{call}, bits={s.bits}",
        "the trainers refuse a base of 8 or 4 bits that is cut. Give bits=None, or train it on one card, or on several that "
        "hold all of it (SharedBase).",
    )
    yield (
        s.shards and bool(s.shared) and s.lora is not None and roles > 1,
        f"{call}, shared=True",
        f"{roles} roles on one SharedBase are refused: the base is cut {CUT_BASE}. Give shared=False.",
    )
    yield (
        s.shards and s.on_policy and s.generator != "transformers",
        f"{call}, generator={s.generator!r}",
        NO_GENERATOR,
    )
    yield (
        s.shards and s.optimizer != "adamw",
        f"{call}, optimizer={s.optimizer!r}",
        "it was never tried. Give optimizer='adamw'.",
    )
