"""What to change so that a run fits: no costlier change than is needed, each at the mildest value that suffices."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from trl_ext.memory_planning.plan_changes import CHANGES, Change, group
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


Choice = tuple  # of each of `CHANGES` the value taken, None: not taken


def advise(settings: PlanSettings, judge: Judge) -> list[Advice]:
    """The changes that make a run fit, in order; where none do, those that need least.

    One change more is allowed at a time, the cheapest first, until the best of all allowed ones together fits; then
    each is taken back or made milder, the costliest first, as far as it still fits.

    Args:
        settings: That do not fit.
        judge: From settings to the peak in bytes and the verdict.
    """
    search = _Search(settings, cache(judge))
    choice: Choice = (None,) * len(CHANGES)
    for count in range(1, len(CHANGES) + 1):
        if search.fits(choice):
            break
        choice = search.lowest(choice, count)
    return search.told(search.mildest(choice))


@dataclass(frozen=True)
class _Search:
    settings: PlanSettings
    judge: Judge

    def lowest(self, choice: Choice, count: int) -> Choice:
        """Of the first changes each at what needs least, beside the others; the strongest where values need alike."""
        seen = set()
        while choice not in seen:
            seen.add(choice)
            for place in range(count):
                choice = min([*reversed(self.options(choice, place)), choice], key=self.peak)
        return choice

    def mildest(self, choice: Choice) -> Choice:
        """Each change at the mildest value, or none, that does not undo what all of them reach."""
        fits, peak, seen = self.fits(choice), self.peak(choice), set()
        while choice not in seen:
            seen.add(choice)
            for place in reversed(range(len(CHANGES))):
                options = self.options(choice, place)
                choice = next((one for one in options if (self.fits(one) if fits else self.peak(one) <= peak)), choice)
        return choice

    def options(self, choice: Choice, place: int) -> list[Choice]:
        """A choice with one change's other values, none first, which follow from the changes before it."""
        before = self.after(choice[:place])
        values = [] if before is None else CHANGES[place].values(before)
        return [(*choice[:place], value, *choice[place + 1 :]) for value in (None, *values)]

    def after(self, choice: Choice) -> PlanSettings | None:
        """The settings changed, one change after the other; None where no run can have one of them."""
        settings = self.settings
        for change, value in zip(CHANGES, choice, strict=False):
            settings = settings if value is None else _changed(settings, change, value)
            if settings is None:
                return None
        return settings

    def peak(self, choice: Choice) -> float:
        settings = self.after(choice)
        return math.inf if settings is None else self.judge(settings)[0]

    def fits(self, choice: Choice) -> bool:
        settings = self.after(choice)
        return settings is not None and self.judge(settings)[1] == FITS

    def told(self, choice: Choice) -> list[Advice]:
        advice, steps = [], self._micro_batches(choice)
        for place, (change, value) in enumerate(zip(CHANGES, choice, strict=True)):
            if value is not None:
                words = [text.format(value=value, steps=steps) for text in (change.words, change.flag, change.config)]
                settings = self.after(choice[: place + 1])
                advice.append(Advice(*words, change.cost, settings, *self.judge(settings)))
        return advice

    def _micro_batches(self, choice: Choice) -> int:
        """Of a step: all that is sampled at once on-policy; else a step's size is not what is sampled."""
        settings = self.after(choice)
        return (settings if settings.on_policy else self.settings).batch // settings.micro_batch


def _changed(settings: PlanSettings, change: Change, value: object) -> PlanSettings | None:
    """The settings with one change; None where no run can have it."""
    try:
        changed = replace(settings, **{change.setting: value}, **dict(change.also))
    except ValueError:
        return None
    return changed if _is_whole(changed, settings) else None


def _is_whole(changed: PlanSettings, before: PlanSettings) -> bool:
    """Whether new sizes go into each other: a batch is whole micro-batches, and a new one whole groups."""
    if changed.batch != before.batch and changed.batch % group(changed):
        return False
    sizes = (changed.batch, changed.micro_batch)
    return sizes == (before.batch, before.micro_batch) or changed.batch % changed.micro_batch == 0
