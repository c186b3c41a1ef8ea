"""What `best_of_n` found over seeds: its tables and its picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from examples.benchmarks.common.over_seeds import mean_and_deviation, paired_difference, standard_error
from examples.benchmarks.r3.rerank_table import markdown
from trl_ext.reward_evaluation import Overoptimization, draw_curves, fit_best_of_n

CONTROL, MEAN, MEMBER = "control: one model of all pairs", "ensemble, mean", "one member"
ENSEMBLES = {MEAN: "mean", "ensemble, min": "min", "ensemble, mean less variance": "mean_minus_variance"}
ARMS = (CONTROL, MEMBER, *ENSEMBLES)
MIDDLE = 64  # from here to the largest n, a reward that is over-optimised loses gold

Seeds = Sequence[dict[str, dict]]


@dataclass(frozen=True, eq=False)
class OverSeeds:
    """An arm's curve, mean over seeds with standard errors over seeds, as `draw_curves` takes it."""

    sizes: list[int]
    kl: list[float]
    proxy: np.ndarray
    proxy_errors: np.ndarray
    gold: np.ndarray
    gold_errors: np.ndarray
    fit: Overoptimization


def over_seeds(found: Seeds, arm: str) -> OverSeeds:
    """The fit is to the means; its intervals resample seeds."""
    sizes, kl = (found[0][CONTROL][name] for name in ("n", "kl"))
    proxy, gold = (np.array([at(found, arm, name, i) for i in range(len(sizes))]).T for name in ("proxy", "gold"))
    return OverSeeds(sizes, kl, *_means(proxy), *_means(gold), fit_best_of_n(kl, gold - gold[:, :1]))


def _means(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `(seeds, K)`, and their standard errors."""
    seeds = range(len(values))
    errors = [standard_error(column, seeds) if len(values) > 1 else 0.0 for column in values.T.tolist()]
    return values.mean(0), np.array(errors)


def by_arm(seed: dict[str, dict], arm: str) -> list[dict]:
    """The curves of an arm in one seed: of the members all."""
    return [curve for name, curve in seed.items() if name == arm or (arm == MEMBER and name.startswith(f"{MEMBER} "))]


def at(found: Seeds, arm: str, measure: str, place: int) -> list[float]:
    """Of each seed, what a measure is at one n."""
    return [mean(curve[measure][place] for curve in by_arm(seed, arm)) for seed in found]


def page(found: Seeds) -> str:
    """All tables."""
    lines = [markdown(by_n(found)), markdown(at_the_end(found)), markdown(fits(found)), *differences(found)]
    for name in ("gold", "control", "member", "correlation"):
        lines.append(f"{name}: {mean_and_deviation([seed['models'][name] for seed in found])}")
    lines += [
        f"{name}: {mean_and_deviation([s[CONTROL][name] for s in found], digits=3)}" for name in ("repeated", "tied")
    ]
    return "\n\n".join(lines)


def by_n(found: Seeds) -> list[list[str]]:
    sizes = found[0][CONTROL]["n"]
    table = [["gold of the best of n", *(f"{n}" for n in sizes)]]
    return table + [[arm, *(f"{value:.2f}" for value in over_seeds(found, arm).gold)] for arm in ARMS]


def at_the_end(found: Seeds) -> list[list[str]]:
    last = len(found[0][CONTROL]["n"]) - 1
    n = found[0][CONTROL]["n"][last]
    table = [
        [f"{len(found)} seeds", *(f"{what}, n = {n}" for what in ("proxy", "gold")), "right, n = 1", f"right, n = {n}"]
    ]
    places = ("proxy", last), ("gold", last), ("right", 0), ("right", last)
    return table + [[arm, *(mean_and_deviation(at(found, arm, *place)) for place in places)] for arm in ARMS]


def fits(found: Seeds) -> list[list[str]]:
    """Of the mean over seeds, with intervals over seeds; and in how many curves the peak is reached."""
    table = [["Gao's fit", "α [95 %]", "β [95 %]", "peak d*", "d* reached in"]]
    for arm in ARMS:
        fit, curves = over_seeds(found, arm).fit, [curve for seed in found for curve in by_arm(seed, arm)]
        numbers = [f"{v:.2f} [{low:.2f}, {high:.2f}]" for v, (low, high) in
                   ((fit.alpha, fit.alpha_interval), (fit.beta, fit.beta_interval))]  # fmt: skip
        peak = f"not reached (d ≤ {fit.largest:.2f})" if fit.peak is None else f"{fit.peak:.2f}"
        reached = sum(curve["fit"]["peak"] is not None for curve in curves)
        table.append([arm, *numbers, peak, f"{reached} of {len(curves)} curves"])
    return table


def differences(found: Seeds) -> list[str]:
    """Paired over seeds, the primary endpoint first."""
    sizes = found[0][CONTROL]["n"]
    last, middle = len(sizes) - 1, sizes.index(MIDDLE) if MIDDLE in sizes else 0
    gold, right = ({arm: at(found, arm, name, last) for arm in ARMS} for name in ("gold", "right"))
    pairs = [(arm, other) for arm in ENSEMBLES for other in (CONTROL, MEMBER)] + [(CONTROL, MEMBER)]
    lines = []
    for what, values in (("gold", gold), ("right", right)):
        for one, other in pairs:
            named = f"{one.split(':')[0]} less {other.split(':')[0]}, {what} at n = {sizes[last]}"
            lines.append(f"{named}: {paired_difference(values[one], values[other])}")
    for arm in ARMS:
        lost = paired_difference(gold[arm], at(found, arm, "gold", middle))
        lines.append(f"{arm}: gold at n = {sizes[last]} less that at n = {sizes[middle]}: {lost}")
    return lines


def draw(path: Path, found: Seeds) -> None:
    draw_curves(path, {arm: over_seeds(found, arm) for arm in (CONTROL, *ENSEMBLES)})
