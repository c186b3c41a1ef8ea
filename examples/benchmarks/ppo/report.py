"""Tables of PPO's benchmarks: mean ± deviation over seeds, and differences between arms within seeds."""

from collections.abc import Callable
from itertools import pairwise
from math import nan
from statistics import mean

import numpy as np
from rich.console import Console
from rich.table import Table

from examples.benchmarks.common.over_seeds import differences_and_signs, mean_and_deviation

Result = dict
Measures = dict[str, Callable[[Result], float]]

POINTS = {
    "reward": "reward",
    "judge": "judge",
    "right": "closed right",
    "kl": "KL",
    "length": "tokens",
    "ended": "ended",
    "distinct_2": "distinct-2",
    "rollouts": "rollouts",
    "clock": "clock, s",
}


def value_at(result: Result, name: str, place: float, *, by: str) -> float:
    """A measure where the clock, or the number of rollouts, was at some place; straight lines between the looks."""
    places, values = ([point[key] for point in result["points"]] for key in (by, name))
    return float(np.interp(place, places, values))


def over_time(result: Result, name: str) -> float:
    """Mean of a measure over the run's time: of two arms that end at one score, the faster one has more.

    >>> over_time({"points": [{"clock": 0, "judge": 0.0}, {"clock": 1, "judge": 2.0}, {"clock": 3, "judge": 2.0}]}, "judge")
    1.6666666666666667
    """
    clock, values = ([point[key] for point in result["points"]] for key in ("clock", name))
    return float(np.trapezoid(values, clock) / (clock[-1] - clock[0]))


def at_kl(result: Result, name: str, kl: float) -> float:
    """A measure where the run first reaches this KL, by a straight line between two looks.

    NaN where it never does, and where the two looks are further apart than 1.5 × that KL: then nobody has looked.

    >>> run = {"points": [{"kl": 0.0, "judge": 0.0}, {"kl": 2.0, "judge": 1.0}, {"kl": 3.0, "judge": 5.0}]}
    >>> at_kl(run, "judge", 2.5), at_kl(run, "judge", 1.0), at_kl(run, "judge", 4.0)
    (3.0, nan, nan)
    """
    for before, after in pairwise(result["points"]):
        if after["kl"] >= kl:
            share = (kl - before["kl"]) / (after["kl"] - before["kl"])
            resolved = after["kl"] - before["kl"] <= 1.5 * kl
            return before[name] + share * (after[name] - before[name]) if resolved else nan
    return nan


def foreseen(result: Result) -> float:
    """Explained variance of the critic, mean over the second half of the run's rollouts; NaN where there is none."""
    values = result["explained_variance"]
    return mean(values[len(values) // 2 :]) if values else nan


def measures_of(found: dict[str, list[Result]], kl: float) -> Measures:
    """What is in the table: the last look's measures, scores over time and at one KL, explained variance."""
    there = next(iter(found.values()))[0]["points"][0]
    last = {
        title: (lambda result, name=name: result["points"][-1][name])
        for name, title in POINTS.items()
        if name in there
    }
    return {
        **last,
        "reward over time": lambda result: over_time(result, "reward"),
        "judge over time": lambda result: over_time(result, "judge"),
        f"judge at {kl:g} nats": lambda result: at_kl(result, "judge", kl),
        "expl. variance": foreseen,
    }


def main_table(found: dict[str, list[Result]], title: str, console: Console, *, kl: float) -> None:
    """One row per arm, and one for the start; scores are also shown where KL has come to `kl`."""
    measures = measures_of(found, kl)
    table = Table(title=title, title_justify="left")
    for column in ("", *measures):
        table.add_column(column, justify="right" if column else "left")
    starts = [{"points": result["points"][:1]} for result in next(iter(found.values()))]
    names = [name for name, title in POINTS.items() if title in measures]
    cells = [mean_and_deviation([result["points"][0][name] for result in starts]) for name in names]
    table.add_row("start", *cells)
    for arm, runs in found.items():
        table.add_row(arm, *(mean_and_deviation([measure(run) for run in runs]) for measure in measures.values()))
    console.print(table)


def differences(ours: list[Result], base: list[Result], measure: Callable[[Result], float]) -> str:
    """Mean ± deviation of the differences within seeds, and in how many seeds they are above 0."""
    return differences_and_signs([measure(one) - measure(other) for one, other in zip(ours, base, strict=True)])


def difference_table(found: dict[str, list[Result]], base: str, console: Console, *, kl: float) -> None:
    """Each arm less the base, within seeds, at equal time, and for both scores also at equal numbers of rollouts."""
    left_out = ("clock, s", "rollouts", "ended")
    measures = {title: measure for title, measure in measures_of(found, kl).items() if title not in left_out}
    table = Table(title=f"Less {base!r}, within seeds (seeds above 0)", title_justify="left")
    for column in ("", *measures, "reward, equal rollouts", "judge, equal rollouts"):
        table.add_column(column, justify="right" if column else "left")
    for arm in found:
        if arm != base:
            cells = [differences(found[arm], found[base], measure) for measure in measures.values()]
            cells += [equal_rollouts(found[arm], found[base], name) for name in ("reward", "judge")]
            table.add_row(arm, *cells)
    console.print(table)


def equal_rollouts(ours: list[Result], base: list[Result], name: str) -> str:
    """The difference in a measure after as many rollouts as the slower of the two has made."""
    values = []
    for one, other in zip(ours, base, strict=True):
        count = min(result["points"][-1]["rollouts"] for result in (one, other))
        values.append(value_at(one, name, count, by="rollouts") - value_at(other, name, count, by="rollouts"))
    return differences_and_signs(values)
