"""What may be changed of a run so that it needs less, the cheapest first: each with its flag, its line and its cost."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from trl_ext.memory_planning.plan_settings import PlanSettings


@dataclass(frozen=True)
class Change:
    """A way to need less.

    Args:
        values: Of a setting, what to try in turn; empty where the change does not apply.
        setting: Its name.
        also: Other settings that it sets, by name.
        words: What is changed; `{value}` is the new one.
        flag: Of `trl-ext plan`.
        config: The line of a script; `{steps}` is of how many micro-batches a step then is.
        cost: What it costs.
    """

    setting: str
    words: str
    flag: str
    config: str
    cost: str
    values: Callable[[PlanSettings], list]
    also: tuple[tuple[str, object], ...] = ()


def group(settings: PlanSettings) -> int:
    """Completions that must be sampled in one batch: those of a prompt; RAFT and ReST sample in any batches."""
    return settings.num_generations if settings.on_policy else 1


def _halves(name: str, least: int = 1) -> Callable[[PlanSettings], list[int]]:
    """Halves of a setting, down to its least."""

    def values(settings: PlanSettings) -> list[int]:
        found, value = [], getattr(settings, name)
        while value > least:
            value = max(value // 2, least)
            found.append(value)
        return found

    return values


def _halves_of_batch(settings: PlanSettings) -> list[int]:
    """Halves of what is sampled at once, in whole micro-batches and groups, down to one of them."""
    part = math.lcm(settings.micro_batch, group(settings))
    found, count = [], settings.batch // part if settings.samples else 0
    while count > 1:
        count //= 2
        found.append(count * part)
    return found


def _if(condition: Callable[[PlanSettings], bool], value) -> Callable[[PlanSettings], list]:
    return lambda settings: [value] if condition(settings) else []


def _holds_inputs_at_8_bits(settings: PlanSettings) -> bool:
    """Whether a base in 8 bits would hold its inputs in spite of checkpoints."""
    s = settings
    return s.gradient_checkpointing and not s.reentrant and s.bits != 4 and s.lora is not None


def _halves_at_once(settings: PlanSettings) -> list[int]:
    """Halves of what vLLM holds keys and values of, down to one completion."""
    found, count = [], (settings.served_at_once or settings.batch) if settings.generator == "vllm" else 1
    while count > 1:
        count //= 2
        found.append(count)
    return found


CHANGES = (
    Change(
        "micro_batch",
        "micro-batches of {value}",
        "--micro-batch {value}",
        "per_device_train_batch_size={value}, gradient_accumulation_steps={steps}",
        "more, smaller passes per step; the result is the same",
        _halves("micro_batch"),
    ),
    Change(
        "reward_batch",
        "at most {value} completions per pass of a reward model",
        "--reward-batch {value}",
        "LearnedReward(batch_size={value})",
        "more, smaller passes; scores are the same",
        lambda settings: _halves("reward_batch")(settings) if settings.scorers else [],
    ),
    Change(
        "served_at_once",
        "keys and values of at most {value} completions at once in vLLM",
        "--served-at-once {value}",
        "VLLMGenerator(kv_cache_memory_bytes=…), the plan's KV cache",
        "the other completions wait for their turn; the result is the same",
        _halves_at_once,
    ),
    Change(
        "gradient_checkpointing",
        "gradient checkpointing",
        "--gradient-checkpointing",
        "gradient_checkpointing=True",
        "every layer is computed once more in the backward pass; the result is the same",
        _if(lambda settings: not settings.gradient_checkpointing, True),
    ),
    Change(
        "reentrant",
        "reentrant checkpoints",
        "--reentrant",
        'gradient_checkpointing_kwargs={{"use_reentrant": True}}',
        "nothing here: otherwise 8-bit layers hold their inputs in spite of checkpoints",
        _if(lambda settings: settings.bits == 8 and settings.gradient_checkpointing and not settings.reentrant, True),
    ),
    Change(
        "sync_each_batch",
        "gradients that are cut after each micro-batch",
        "--sync-each-batch",
        'accelerator_config={{"gradient_accumulation_kwargs": {{"sync_each_batch": True}}}}',
        "the cards exchange gradients after each micro-batch, not once a step; the result is the same",
        _if(lambda settings: settings.gathers_gradients, True),
    ),
    Change(
        "reduce_bucket_size",
        "buckets of {value} gradients",
        "--reduce-bucket-size {value}",
        'in DeepSpeed\'s config "zero_optimization": {{"reduce_bucket_size": {value}}}',
        "more, smaller exchanges; the result is the same",
        lambda settings: [50_000_000] if settings.is_zero and settings.reduce_bucket_size > 50_000_000 else [],
    ),
    Change(
        "max_live_parameters",
        "at most {value} whole weights beyond a layer",
        "--max-live-parameters {value}",
        'in DeepSpeed\'s config "stage3_max_live_parameters": {value}, "stage3_max_reuse_distance": {value}',
        "weights are gathered once more where they go backward; the result is the same",
        lambda settings: (
            [100_000_000] if settings.shard == "zero3" and settings.max_live_parameters > 100_000_000 else []
        ),
    ),
    Change(
        "shared",
        "one shared base",
        "--shared",
        "SharedBase.from_pretrained(…)",
        "policy, value and reward models must be adapters of one model",
        _if(lambda settings: not settings.shared and settings.lora is not None, True),
    ),
    Change(
        "batch",
        "at most {value} completions sampled at once",
        "--batch {value}",
        "generation_batch_size={value}",
        "on-policy, fewer completions per rollout, so noisier steps; RAFT and ReST sample in more batches, alike",
        _halves_of_batch,
    ),
    Change(
        "optimizer",
        "a paged 8-bit optimiser",
        "--optimizer paged_adamw_8bit",
        'optim="paged_adamw_8bit"',
        "its state waits in the computer's memory and is rounded to 8 bits",
        _if(lambda settings: settings.optimizer != "paged_adamw_8bit", "paged_adamw_8bit"),
    ),
    Change(
        "value_model",
        "a value head on the policy",
        "--no-value-model",
        "PPOTrainer(value_model=None)",
        "the critic learns from the policy's states, with no weights of its own below",
        _if(lambda settings: settings.has_critic, False),
    ),
    Change(
        "shared",
        "LoRA of rank 16",
        "--lora 16",
        'LoraConfig(r=16, target_modules="all-linear")',
        "an adapter is trained in place of all weights",
        _if(lambda settings: settings.lora is None and settings.shards, False),
        also=(("lora", 16),),
    ),
    Change(
        "lora",
        "LoRA of rank {value} on one shared base",
        "--lora {value} --shared",
        'SharedBase.policy(LoraConfig(r={value}, target_modules="all-linear"))',
        "an adapter is trained in place of all weights",
        _if(lambda settings: settings.lora is None, 16),
        also=(("shared", True),),
    ),
    Change(
        "bits",
        "the base in 8 bits",
        "--bits 8",
        "SharedBase.from_pretrained(bits=8)",
        "slower sampling, and a little rounding in every layer",
        _if(lambda settings: settings.bits is None and settings.lora is not None, 8),
    ),
    Change(
        "bits",
        "the base in 8 bits, with reentrant checkpoints",
        "--bits 8 --reentrant",
        'SharedBase.from_pretrained(bits=8), gradient_checkpointing_kwargs={{"use_reentrant": True}}',
        "slower sampling, and a little rounding in every layer; other checkpoints hold the inputs of 8-bit layers",
        _if(_holds_inputs_at_8_bits, 8),
        also=(("reentrant", True),),
    ),
    Change(
        "bits",
        "the base in 4 bits",
        "--bits 4",
        "SharedBase.from_pretrained(bits=4)",
        "more rounding: check a reward model's accuracy and the policy's start again",
        _if(lambda settings: settings.bits != 4 and settings.lora is not None, 4),
    ),
    Change(
        "served_bits",
        "the base that vLLM serves in 4 bits",
        "--served-bits 4",
        'VLLMGenerator(engine_kwargs={{"quantization": "bitsandbytes"}}), with vllm-bnb-plugin',
        "samples come from a policy that is rounded otherwise than the one that is trained, unless that is in 4 bits too",
        _if(lambda settings: settings.generator == "vllm" and settings.served_bits is None, 4),
    ),
    Change(
        "num_gpus",
        "{value} cards",
        "--num-gpus {value}",
        "accelerate launch --num_processes {value}",
        "as many cards, and what they exchange",
        lambda settings: [settings.num_gpus * 2**i for i in (1, 2, 3)] if settings.shards else [],
    ),
    Change(
        "completion_length",
        "completions of {value} tokens at most",
        "--completion-length {value}",
        "max_completion_length={value}",
        "longer answers are cut off",
        _halves("completion_length", 32),
    ),
)
