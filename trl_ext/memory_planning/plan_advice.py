"""What to change so that a run fits: the cheapest changes first, one on top of the other."""

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


def _if(condition: Callable[[PlanSettings], bool], value) -> Callable[[PlanSettings], list]:
    return lambda settings: [value] if condition(settings) else []


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
        lambda settings: _halves("batch", settings.micro_batch)(settings) if settings.samples else [],
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
        "--lora {value}",
        'SharedBase.policy(LoraConfig(r={value}, target_modules="all-linear"))',
        "an adapter is trained in place of all weights",
        _if(lambda settings: settings.lora is None, 16),
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
    if not chosen or judge(_together(settings, chosen))[1] != FITS:
        return _told(settings, chosen, judge)
    for step in reversed(chosen[:-1]):  # the last one is needed
        others = [other for other in chosen if other is not step]
        if judge(_together(settings, others))[1] == FITS:
            chosen = others
    return _told(settings, chosen, judge)


def _until_it_fits(settings: PlanSettings, judge: Judge) -> list[Step]:
    """Greedily: of each change the mildest value that makes it fit, else the one that needs least."""
    chosen, (peak, verdict) = [], judge(settings)
    for change in CHANGES:
        if verdict == FITS:
            break
        options = [(judge(_together(settings, [(change, value)])), value) for value in change.values(settings)]
        fitting = [option for option in options if option[0][1] == FITS]
        best = fitting[0] if fitting else min(options, key=lambda option: option[0][0], default=None)
        if best is not None and best[0][0] < peak:
            (peak, verdict), value = best
            chosen.append((change, value))
            settings = _together(settings, [(change, value)])
    return chosen


def _told(settings: PlanSettings, chosen: list[Step], judge: Judge) -> list[Advice]:
    advice = []
    for change, value in chosen:
        settings = _together(settings, [(change, value)])
        words = [text.format(value=value) for text in (change.words, change.flag, change.config)]
        advice.append(Advice(*words, change.cost, settings, *judge(settings)))
    return advice


def _together(settings: PlanSettings, steps: list[Step]) -> PlanSettings:
    """The settings with some steps taken; a micro-batch is never larger than the batch that it is a part of."""
    values = {change.setting: value for change, value in steps}
    micro_batch = values.get("micro_batch", settings.micro_batch)
    values["micro_batch"] = min(micro_batch, values.get("batch", settings.batch))
    return replace(settings, **values)
