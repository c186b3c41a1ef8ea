"""What to change so that a run fits: the cheapest changes first, one on top of the other."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from trl_ext.memory_planning.plan_settings import PlanSettings

FITS = "fits"
Judge = Callable[[PlanSettings], tuple[int, str]]  # from settings to the peak in bytes and the verdict


@dataclass(frozen=True)
class Advice:
    """A change, made on top of those before it.

    Args:
        change: In words.
        flag: For `trl-ext plan`.
        config: In a script.
        cost: What it costs, in words.
        settings: All settings with it.
        peak: Bytes with it.
        verdict: With it.
    """

    change: str
    flag: str
    config: str
    cost: str
    settings: PlanSettings
    peak: int
    verdict: str


@dataclass(frozen=True)
class Change:
    """A way to need less.

    Args:
        values: Of a setting, what to try in turn; empty where the change does not apply.
        setting: Its name.
        also: Other settings that it sets, by name.
        words: What is changed; `{value}` is the new one.
        flag: Of `trl-ext plan`.
        config: The line of a script.
        cost: What it costs.
    """

    setting: str
    words: str
    flag: str
    config: str
    cost: str
    values: Callable[[PlanSettings], list]
    also: tuple[tuple[str, object], ...] = ()


Step = tuple[Change, object]  # a change and the value that it sets


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
    part = math.lcm(settings.micro_batch, _group(settings))
    found, count = [], settings.batch // part if settings.samples else 0
    while count > 1:
        count //= 2
        found.append(count * part)
    return found


def _if(condition: Callable[[PlanSettings], bool], value) -> Callable[[PlanSettings], list]:
    return lambda settings: [value] if condition(settings) else []


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
        "per_device_train_batch_size={value}",
        "more, smaller passes per step; the result is the same",
        _halves("micro_batch"),
    ),
    Change(
        "reward_batch",
        "at most {value} completions per pass of a reward model",
        "--reward-batch {value}",
        "LearnedReward(batch_size={value})",
        "more, smaller passes; scores are the same",
        lambda settings: _halves("reward_batch")(settings) if settings.rewards else [],
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
        "the base in 4 bits",
        "--bits 4",
        "SharedBase.from_pretrained(bits=4)",
        "more rounding: check a reward model's accuracy and the policy's start again",
        _if(lambda settings: settings.bits == 8, 4),
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
        "completion_length",
        "completions of {value} tokens at most",
        "--completion-length {value}",
        "max_completion_length={value}",
        "longer answers are cut off",
        _halves("completion_length", 32),
    ),
)


def advise(settings: PlanSettings, judge: Judge) -> list[Advice]:
    """The changes that help, in order, until the run fits; what later ones make unnecessary is taken back.

    Args:
        settings: That do not fit.
        judge: From settings to the peak in bytes and the verdict.
    """
    chosen = _until_it_fits(settings, judge)
    for step in reversed(chosen[:-1]):  # the last one is needed
        others = [other for other in chosen if other is not step]
        rest = _together(settings, others)
        if rest is not None and judge(rest)[1] == FITS:
            chosen = others
    return _told(settings, chosen, judge)


def _until_it_fits(settings: PlanSettings, judge: Judge) -> list[Step]:
    """Greedily: of each change the mildest value that makes it fit, else the one that needs least."""
    chosen, (peak, verdict) = [], judge(settings)
    for change in CHANGES:
        if verdict == FITS:
            break
        tried = [((change, value), _together(settings, [(change, value)])) for value in change.values(settings)]
        options = [(judge(changed), step, changed) for step, changed in tried if changed is not None]
        fitting = [option for option in options if option[0][1] == FITS]
        best = fitting[0] if fitting else min(options, key=lambda option: option[0][0], default=None)
        if best is not None and best[0][0] < peak:
            (peak, verdict), step, settings = best
            chosen.append(step)
    return chosen


def _told(settings: PlanSettings, chosen: list[Step], judge: Judge) -> list[Advice]:
    advice = []
    for change, value in chosen:
        settings = _together(settings, [(change, value)])
        words = [text.format(value=value) for text in (change.words, change.flag, change.config)]
        advice.append(Advice(*words, change.cost, settings, *judge(settings)))
    return advice


def _together(settings: PlanSettings, steps: list[Step]) -> PlanSettings | None:
    """The settings with some steps taken; None where no run can have them together."""
    values = {name: new for change, value in steps for name, new in [(change.setting, value), *change.also]}
    try:
        changed = replace(settings, **values)
    except ValueError:
        return None
    return changed if _is_whole(changed, settings) else None


def _is_whole(changed: PlanSettings, before: PlanSettings) -> bool:
    """Whether new sizes go into each other: a batch is whole micro-batches, and a new one whole groups."""
    if changed.batch != before.batch and changed.batch % _group(changed):
        return False
    sizes = (changed.batch, changed.micro_batch)
    return sizes == (before.batch, before.micro_batch) or changed.batch % changed.micro_batch == 0


def _group(settings: PlanSettings) -> int:
    """Completions that must be sampled in one batch: those of a prompt; RAFT and ReST sample in any batches."""
    return settings.num_generations if settings.on_policy else 1
