"""The plan of a run that is about to begin, read off its trainer's models and options."""

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from trl_ext.memory_planning.layer_kinds import ModelShape
from trl_ext.memory_planning.plan_judges import PlannedJudge, shape_if_known
from trl_ext.memory_planning.plan_shard_rules import ENGINES
from trl_ext.memory_planning.planning import MemoryPlan, memory_plan
from trl_ext.rewards.reward_columns import HoldsModel, holders_in
from trl_ext.sequences.prompt_facts import longest_prompt_ids
from trl_ext.sequences.token_ids import TemplateKwargs
from trl_ext.trainer_kit.adapters import loaded_bits
from trl_ext.trainer_kit.passes import under_adapter
from trl_ext.trainer_kit.sharding import engine_asked

UNKNOWN_LENGTH = 512  # of the prompts of a stream


def reward_modules(rewards: Iterable) -> list[HoldsModel]:
    """Reward functions that hold a model, reward models and judges, those of ensembles too; of one model one."""
    found: dict[int, HoldsModel] = {}
    for holder in (holder for reward in rewards for holder in holders_in(reward)):
        found.setdefault(id(holder.held_model()), holder)
    return list(found.values())


def run_plan(
    method: str,
    model: nn.Module,
    args: TrainingArguments,
    *,
    prompt_length: int,
    completion_length: int,
    batch: int | None = None,
    completions: int = 2,
    rewards: Iterable = (),
    value_model: nn.Module | None = None,
    **settings,
) -> MemoryPlan:
    """`memory_plan` for loaded models.

    Reward models, judges and value models count as adapters of the policy's base where their embeddings are the policy's. Reward
    models and judges of another shape or precision count as they are; others as bases of their own like the policy's.

    Args:
        method: As in `memory_plan`.
        model: The model that is trained.
        args: The trainer's config.
        prompt_length, completion_length: The longest, in tokens.
        batch: Sequences per process and step; None: as `args` has it.
        completions: Of a reward model's rows, the most that one has; what is planned for are pairs.
        rewards: Reward functions.
        value_model: PPO's, if it has one.
        settings: Others of `memory_plan`.

    Raises:
        ValueError: For an architecture, kind of adapter or engine that the plan does not know, or a value model of another shape.
    """
    base, holders = under_adapter(model), reward_modules(rewards)
    _check_value_model(value_model, base)
    held = [reward.held_model() for reward in holders]
    judges = other_models([one for one in held if not _on_same_base(one, base)], base)
    alike = [one for one in held if id(one) not in judges] + ([] if value_model is None else [value_model])
    micro_batch = args.per_device_train_batch_size
    return memory_plan(
        base,
        method,
        bits=loaded_bits(base),
        dtype=str(base.dtype).removeprefix("torch."),
        lora=_rank(model),
        **args_settings(args, completions=completions) | ({"batch": max(batch, micro_batch)} if batch else {}),
        prompt_length=prompt_length,
        completion_length=completion_length,
        value_model=value_model is not None,
        reward_models=len(holders) - len(judges),
        reward_batch=max([reward.batch_size for reward in holders], default=1),
        autocast=base.dtype == torch.float32 and bool(args.bf16 or args.fp16),
        shared=all(_on_same_base(other, base) for other in alike),
        judges=list(judges.values()),
        **cut_settings(args),
        **settings,
    )


def other_models(held: Iterable[nn.Module], base: nn.Module) -> dict[int, PlannedJudge]:
    """By their ids those that are not like the policy's base: in shape or precision, or of a kind whose shape nobody knows.

    What several of them share is counted with the first.
    """
    seen, found, like = set(map(id, base.parameters())), {}, _kind(base)
    for model in held:
        if _kind(under_adapter(model)) != like:
            found[id(model)] = loaded_judge(model, seen)
    return found


def loaded_judge(model: nn.Module, seen: set[int]) -> PlannedJudge:
    """A model as it is in memory.

    Args:
        model: Plain, or with an adapter.
        seen: Ids of the tensors that are counted elsewhere; its own are added.
    """
    shape, bits, dtype = _kind(trunk := under_adapter(model))
    own = [each for each in (*model.parameters(), *model.buffers()) if id(each) not in seen]
    seen |= set(map(id, own))
    name = trunk.config._name_or_path or type(trunk).__name__
    return PlannedJudge(name, sum(each.nbytes for each in own), shape, bits, dtype.itemsize)


def _check_value_model(value_model: nn.Module | None, base: nn.Module) -> None:
    """Raise a ValueError for one whose layers, which are trained beside the policy's, are others than those."""
    if value_model is not None and _layers(under_adapter(value_model)) != _layers(base):
        raise ValueError(
            "memory_plan: the value model is of another shape than the policy, and what its training needs is not counted."
        )


def _layers(base: nn.Module) -> tuple | None:
    shape = shape_if_known(base)
    return shape and (shape.hidden, shape.kinds)


def _kind(base: nn.Module) -> tuple[ModelShape | None, int | None, torch.dtype]:
    """Shape and precision; no shape of what is no decoder of text."""
    return shape_if_known(base), loaded_bits(base), base.dtype


def args_settings(args: TrainingArguments, *, completions: int = 2) -> dict[str, Any]:
    """What a trainer's config says of a plan, by the names of `memory_plan`'s arguments; lists of K are K / 2 pairs."""
    micro_batch = math.ceil(args.per_device_train_batch_size * completions / 2)
    return {
        "batch": micro_batch * args.gradient_accumulation_steps,
        "micro_batch": micro_batch,
        "gradient_checkpointing": bool(args.gradient_checkpointing),
        "reentrant": bool((args.gradient_checkpointing_kwargs or {}).get("use_reentrant", False)),
        "optimizer": _optimizer(args),
        "device": "cuda" if args.device.type == "cuda" else "cpu",
    }


def cut_settings(args: TrainingArguments) -> dict[str, Any]:
    """The same of what the run's processes have to each other; nothing of one, a ValueError for an engine that is not counted."""
    if args.world_size < 2:
        return {}
    engine = _with_version(engine_asked(args), args)
    shard = "ddp" if engine is None else next((name for name, one in ENGINES.items() if one == engine), None)
    if shard is None:
        raise ValueError(f"memory_plan: what {engine} leaves on each card is not counted.")
    others = {"fsdp2": _of_fsdp, "zero2": _of_zero, "zero3": _of_zero}.get(shard, lambda args: {})
    return {"shard": shard, "num_gpus": args.world_size, **others(args)}


def _with_version(engine: str | None, args: TrainingArguments) -> str | None:
    """An engine with its version or stage, which the config knows where accelerate has not been asked yet: in a dry run."""
    if engine == "DeepSpeed":
        return f"{engine} ZeRO-{args.deepspeed_plugin.zero_stage}"
    return f"FSDP{os.environ.get('FSDP_VERSION', '1')}" if engine == "FSDP" else engine


def _of_fsdp(args: TrainingArguments) -> dict[str, Any]:
    accumulation = getattr(args.accelerator_config, "gradient_accumulation_kwargs", None) or {}
    syncs = args.gradient_accumulation_steps > 1 and bool(accumulation.get("sync_each_batch"))
    return {"sync_each_batch": syncs}


def _of_zero(args: TrainingArguments) -> dict[str, Any]:
    """Sizes that DeepSpeed's config says, where it does."""
    plugins = AcceleratorState._shared_state.get("deepspeed_plugins") or args.deepspeed_plugin
    (plugin, *_) = plugins.values() if isinstance(plugins, dict) else [plugins]
    told, is_third = plugin.deepspeed_config.get("zero_optimization", {}), plugin.zero_stage == 3
    live = [told.get(f"stage3_max_{name}") for name in ("live_parameters", "reuse_distance")]
    found = {"reduce_bucket_size": told.get("reduce_bucket_size")}
    if is_third and all(_is_size(one) for one in live):
        found["max_live_parameters"] = max(live)
    return {name: int(value) for name, value in found.items() if _is_size(value)}


def _is_size(value: object) -> bool:
    """Whether it is a number, and not "auto" or left to DeepSpeed."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1


def longest_prompt(dataset: object, tokenizer: PreTrainedTokenizerBase, template_kwargs: TemplateKwargs = None) -> int:
    """Tokens of the longest prompt, text or messages; of a stream, whose end nobody knows, a guess."""
    if not isinstance(dataset, Dataset):
        return UNKNOWN_LENGTH
    return longest_prompt_ids(dataset, tokenizer, template_kwargs)


def _rank(model: nn.Module) -> int | None:
    if not isinstance(model, PeftModel):
        return None
    config = model.peft_config[model.active_adapter]
    if not isinstance(config, LoraConfig):
        raise ValueError(f"memory_plan: expected LoRA, got {type(config).__name__}, whose weights it cannot count.")
    return config.r


def _optimizer(args: TrainingArguments) -> str:
    name = str(getattr(args.optim, "value", args.optim))
    if "8bit" not in name:
        return "adamw"
    return "paged_adamw_8bit" if name.startswith("paged") else "adamw_8bit"


def _on_same_base(other: nn.Module, base: nn.Module) -> bool:
    return under_adapter(other).get_input_embeddings().weight is base.get_input_embeddings().weight
