"""What to change so that a run fits: the cheapest changes first, one on top of the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from trl_ext.low_memory.plan_settings import PlanSettings


@dataclass(frozen=True)
class Advice:
    """A change, made on top of those before it.

    Args:
        change: In words.
        cost: What it costs, in words.
        settings: All settings with it.
        peak: Bytes with it.
        verdict: With it.
    """

    change: str
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
        cost: What it costs.
    """

    setting: str
    words: str
    cost: str
    values: Callable[[PlanSettings], list]


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
        "more, smaller passes per step; the result is the same",
        _halves("micro_batch"),
    ),
    Change(
        "reward_batch",
        "{value} completions per pass of a reward model",
        "more, smaller passes; scores are the same",
        lambda settings: _halves("reward_batch")(settings) if settings.rewards else [],
    ),
    Change(
        "gradient_checkpointing",
        "gradient checkpointing",
        "every layer is computed once more in the backward pass; the result is the same",
        _if(lambda settings: not settings.gradient_checkpointing, True),
    ),
    Change(
        "reentrant",
        'checkpoints with gradient_checkpointing_kwargs={{"use_reentrant": True}}',
        "nothing here: otherwise 8-bit layers hold their inputs in spite of checkpoints",
        _if(lambda settings: settings.bits == 8 and settings.gradient_checkpointing and not settings.reentrant, True),
    ),
    Change(
        "batch",
        "{value} completions sampled at once",
        "on-policy, fewer completions per rollout, so noisier steps; RAFT and ReST sample in more batches, alike",
        lambda settings: _halves("batch", settings.micro_batch)(settings) if settings.samples else [],
    ),
    Change(
        "optimizer",
        "a paged 8-bit optimiser",
        "its state waits in the computer's memory and is rounded to 8 bits",
        _if(lambda settings: settings.optimizer != "paged_adamw_8bit", "paged_adamw_8bit"),
    ),
    Change(
        "value_model",
        "a value head on the policy",
        "the critic learns from the policy's states, with no weights of its own below",
        _if(lambda settings: settings.has_critic, False),
    ),
    Change(
        "shared",
        "one shared base",
        "policy, value and reward models must be adapters of one model",
        _if(lambda settings: not settings.shared and settings.lora is not None, True),
    ),
    Change(
        "lora",
        "LoRA of rank {value} on one shared base",
        "an adapter is trained in place of all weights",
        _if(lambda settings: settings.lora is None, 16),
    ),
    Change(
        "bits",
        "the base in 8 bits",
        "slower sampling, and a little rounding in every layer",
        _if(lambda settings: settings.bits is None and settings.lora is not None, 8),
    ),
    Change(
        "bits",
        "the base in 4 bits",
        "more rounding: check a reward model's accuracy and the policy's start again",
        _if(lambda settings: settings.bits == 8, 4),
    ),
    Change(
        "completion_length",
        "completions of {value} tokens at most",
        "longer answers are cut off",
        _halves("completion_length", 32),
    ),
)


def advise(settings: PlanSettings, judge: Callable[[PlanSettings], tuple[int, str]]) -> Iterator[Advice]:
    """The changes that help, in order, until the run fits.

    Args:
        settings: That do not fit.
        judge: From settings to the peak in bytes and the verdict.
    """
    peak, verdict = judge(settings)
    for change in CHANGES:
        if verdict == "fits":
            return
        tried = [_try(change, value, settings, judge) for value in change.values(settings)]
        fitting = [advice for advice in tried if advice.verdict == "fits"]
        best = fitting[0] if fitting else min(tried, key=lambda advice: advice.peak, default=None)
        if best is not None and best.peak < peak:
            settings, peak, verdict = best.settings, best.peak, best.verdict
            yield best


def _try(change: Change, value, settings: PlanSettings, judge) -> Advice:
    new = replace(settings, **{change.setting: value})
    peak, verdict = judge(new)
    return Advice(change.words.format(value=value), change.cost, new, peak, verdict)
