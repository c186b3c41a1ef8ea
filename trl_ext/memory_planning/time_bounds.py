"""How long will it take, at least? By phase, from a card's published speed.

A bound, not a forecast: it takes every product at the card's published rate and every byte at its published bandwidth, and
counts neither optimiser steps, norms, sampling, padding nor the CPU's part. Completions have the plan's length.
"""

from dataclasses import dataclass

from trl_ext.memory_planning.card_speeds import Card
from trl_ext.memory_planning.layer_kinds import ModelShape
from trl_ext.memory_planning.plan_settings import PlanSettings
from trl_ext.memory_planning.time_phases import generating, learned, scoring, training

EPOCHS = {
    "ppo": 4,
    "grpo": 1,
    "raft": 2,
    "rest": 12,
    "reward": 1,
    "sft": 1,
}  # the configs' own; of ReST 6 Improves of 2


@dataclass(frozen=True)
class TimeBound:
    """Seconds that no run on a card takes less than.

    Args:
        card: Which.
        seconds: By phase.
        of: What takes them, in words.
    """

    card: Card
    seconds: dict[str, float]
    of: str

    @property
    def hours(self) -> float:
        """Of all phases together."""
        return sum(self.seconds.values()) / 3600


def time_bound(
    shape: ModelShape,
    settings: PlanSettings,
    card: Card,
    *,
    prompts: int | None = None,
    max_steps: int | None = None,
    epochs: int | None = None,
) -> TimeBound:
    """A lower bound of a run's time: the arguments of `MemoryPlan.time_bound`."""
    for name, value in {"prompts": prompts, "max_steps": max_steps, "epochs": epochs}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"time_bound({name}={value!r}): expected a whole number from 1 on. Mend it.")
    if prompts and max_steps:
        raise ValueError(
            f"time_bound(prompts={prompts}, max_steps={max_steps}): expected one of them, since either says how long the run "
            "is. Leave one out."
        )
    epochs = epochs or EPOCHS[settings.method]
    times = batches(settings, prompts=prompts, max_steps=max_steps, epochs=epochs)
    found = {"generate": generating(shape, settings, card), "score": scoring(shape, settings, card)}
    found = {name: seconds for name, seconds in found.items() if settings.samples}
    found["train"] = epochs * training(shape, settings, card)
    return TimeBound(
        card, {name: times * seconds for name, seconds in found.items()}, _of(settings, prompts, max_steps)
    )


def batches(settings: PlanSettings, *, prompts: int | None, max_steps: int | None, epochs: int) -> float:
    """How often `batch` rows are gone through in a run; 1 where neither is given.

    prompts · K / batch, or steps · batch / (epochs · rows learned of a batch)
    """
    if max_steps is not None:
        return max_steps * settings.batch / (epochs * learned(settings))
    each = settings.num_generations if settings.samples else 1
    return 1.0 if prompts is None else prompts * each / settings.batch


def _of(settings: PlanSettings, prompts: int | None, max_steps: int | None) -> str:
    """What a bound is of, in words, with a capital."""
    rows = {"reward": "pairs", "sft": "rows"}.get(settings.method, "prompts")
    if prompts is not None:
        return f"{prompts:,} {rows}"
    if max_steps is not None:
        return f"{max_steps:,} steps"
    if not settings.samples:
        return f"The {settings.batch} {rows} of a step"
    return f"The {settings.batch} completions of a {'rollout' if settings.on_policy else 'stage'}"
