"""What to change so that a run fits: the cheapest changes first, one on top of the other."""

from collections.abc import Callable
from dataclasses import dataclass, replace

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


Step = tuple[Change, object]  # a change and the value that it sets


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
    if changed.batch != before.batch and changed.batch % group(changed):
        return False
    sizes = (changed.batch, changed.micro_batch)
    return sizes == (before.batch, before.micro_batch) or changed.batch % changed.micro_batch == 0
