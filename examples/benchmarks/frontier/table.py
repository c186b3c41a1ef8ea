"""The frontier's tables: gold, proxy and what they cost, at equal KL and at the end, over seeds."""

import argparse
from itertools import pairwise
from math import inf, isnan, nan, sqrt
from statistics import mean

from examples.benchmarks.common.over_seeds import mean_and_deviation, paired_difference
from examples.benchmarks.frontier.arms import BEST_OF_N, ORDER, RAFT_FAST, RAFT_SLOW

Point = dict[str, float]
BASE = "PPO"
RAFT_RATES = (RAFT_SLOW, "RAFT", RAFT_FAST)


def centred(result: dict, start: dict) -> dict:
    """With gold and proxy in deviations of the start's samples, and the start, best of 1, as the first point of all."""
    points = start["points"][:1] + (result["points"][1:] if result["arm"] == BEST_OF_N else result["points"])
    scale = start["centre"]
    scaled = [point | {name: (point[name] - m) / s for name, (m, s) in scale.items()} for point in points]
    return result | {"points": scaled}


def at(points: list[Point], name: str, place: float, *, by: str = "kl") -> float:
    """A measure where the run first reaches a place; NaN where nobody has looked near it.

    By KL a look is near within half of that KL.

    >>> run = [{"kl": 0.0, "gold": 0.0}, {"kl": 1.0, "gold": 1.0}, {"kl": 4.0, "gold": 3.0}]
    >>> at(run, "gold", 2.25), at(run, "gold", 9.0), at(run, "gold", 0.81), at(run, "kl", 2.0, by="gold")
    (nan, nan, 0.9, 2.5)
    """
    around = next((pair for pair in pairwise(points) if pair[1][by] >= place), ())
    near = min((abs(look[by] - place) for look in around), default=inf) <= place / 2
    return between(points, name, place, by=by) if near or (around and by != "kl") else nan


def between(points: list[Point], name: str, place: float, *, by: str = "kl") -> float:
    """On a straight line between the two looks around it: in √KL, or in a score. NaN where the run never gets there."""
    scale = (lambda value: sqrt(max(value, 0.0))) if by == "kl" else float
    for before, after in pairwise(points):
        if after[by] >= place:
            share = (scale(place) - scale(before[by])) / (scale(after[by]) - scale(before[by]))
            return before[name] + share * (after[name] - before[name])
    return nan


def tuning_value(points: list[Point], kl: float) -> tuple[float, float]:
    """Gold where those nats are first reached, and they; of a run that never reaches them, what it ends with."""
    found = at(points, "gold", kl)
    return (points[-1]["gold"], points[-1]["kl"]) if isnan(found) else (found, kl)


def over(values: list[float], digits: int = 2) -> str:
    """Mean ± deviation of those that there are, and how many of the seeds where that is not all.

    >>> over([1.0, 2.0, nan]), over([nan])
    ('1.50 ± 0.71 (2/3)', '–')
    """
    there = [value for value in values if not isnan(value)]
    if not there:
        return "–"
    return mean_and_deviation(there, digits=digits) + (
        f" ({len(there)}/{len(values)})" if len(there) < len(values) else ""
    )


def nats(kl: float) -> str:
    """In words."""
    return f"{kl:g} nat" + "s" * (kl != 1)


def print_tables(found: dict[str, list[dict]], args: argparse.Namespace) -> None:
    runs = {arm: [result["points"] for result in found[arm]] for arm in ORDER}
    print_main(runs, found, args.at_kl)
    print_differences(runs, args.at_kl)
    print_raft_rates(runs)


def print_main(runs: dict[str, list[list[Point]]], found: dict[str, list[dict]], kl: float) -> None:
    """One row per arm, and one of the start."""
    names = ("gold", "proxy", "right", "perplexity")
    columns = [f"{name} at {nats(kl)}" for name in names] + [f"{name}, end" for name in ("KL", *names)]
    print(f"\n| | rate | {' | '.join(columns)} | thousand passes |\n|{'---|' * (len(columns) + 3)}")
    starts = [points[0] for points in runs[BEST_OF_N]]
    first = [over([start[name] for start in starts]) for name in ("right", "perplexity")]
    print(f"| after SFT | | | | | | 0 | 0 | 0 | {first[0]} | {first[1]} | |")
    for arm, seeds in runs.items():
        cells = [over([at(points, name, kl) for points in seeds]) for name in names]
        cells += [over([points[-1][name] for points in seeds]) for name in ("kl", *names)]
        cells += [f"{mean(points[-1]['cost'] for points in seeds) / 1e3:.0f}"]
        rate = f"{found[arm][0]['rate']:g}" if "rate" in found[arm][0] else "–"
        print(f"| {arm} | {rate} | {' | '.join(cells)} |")
    shares = [[point | {"kl": point["kl_shares"]} for point in points] for points in runs[BEST_OF_N]]
    there = over([at(points, "gold", kl) for points in shares])
    print(f"{BEST_OF_N}, KL by the shares of its samples: gold at {nats(kl)} {there}, "
          f"KL at the end {over([points[-1]['kl'] for points in shares])}\n")  # fmt: skip


def print_differences(runs: dict[str, list[list[Point]]], kl: float) -> None:
    """The primary endpoint: PPO less each other arm, over the seeds in which both get so far; half as far, and at the end."""
    measures = {
        f"gold at {nats(place)}": lambda points, place=place: at(points, "gold", place) for place in (kl, kl / 2)
    }
    measures["gold at the end"] = lambda points: points[-1]["gold"]
    for arm in runs:
        if arm != BASE:
            found = {
                title: paired(*([measure(points) for points in runs[name]] for name in (BASE, arm)))
                for title, measure in measures.items()
            }
            print(f"{BASE} − {arm}: " + "; ".join(f"{title} {value}" for title, value in found.items()))


def paired(values: list[float], others: list[float]) -> str:
    both = [pair for pair in zip(values, others, strict=True) if not any(map(isnan, pair))]
    if not both:
        return "– (never both)"
    return paired_difference(*zip(*both, strict=True)) + (
        f", {len(both)} seeds" if 1 < len(both) < len(values) else ""
    )


def print_raft_rates(runs: dict[str, list[list[Point]]]) -> None:
    """RAFT's claim: a small learning rate trades reward for perplexity better. At the highest proxy that all three reach."""
    seeds = list(zip(*(runs[arm] for arm in RAFT_RATES), strict=True))
    places = [min(max(point["proxy"] for point in points) for points in rates) for rates in seeds]
    found = {
        name: [
            [at(points, name, place, by="proxy") for points in rates]
            for rates, place in zip(seeds, places, strict=True)
        ]
        for name in ("perplexity", "right", "kl", "gold")
    }
    print(f"\nRAFT, where its proxy first is at {over(places)}:")
    for i, arm in enumerate(RAFT_RATES):
        values = {name: [rates[i] for rates in each] for name, each in found.items()}
        shown = ", ".join(f"{name} {over(each)}" for name, each in values.items())
        less = paired(values["perplexity"], [rates[1] for rates in found["perplexity"]])
        print(f"{arm}: {shown}" + (f"; perplexity less RAFT's {less}" if arm != "RAFT" else ""))
