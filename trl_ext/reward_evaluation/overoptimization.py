"""How much of a gold reward is bought per nat, and where buying more loses it (Gao et al., 2022, arXiv:2210.10760).

d = √KL, the distance to the start; gold is in units of which the start has mean 0 and deviation 1. K points, P prompts.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from math import exp, inf, isfinite, nan, sqrt
from typing import Any, Literal

import numpy as np

RESAMPLES = 2000
FEWEST = 3  # distances beyond 0, since two would fit any two numbers exactly
INTERVAL = (2.5, 97.5)  # percentiles of what resamples give
FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "α − β d": lambda d: d,
    "α − β log d": lambda d: np.log(np.where(d > 0, d, 1.0)),
}
Form = Literal["α − β d", "α − β log d"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Overoptimization:
    """The fit R = d · (α − β d) of best-of-n, or R = d · (α − β log d) of reinforcement learning.

    Args:
        form: Which of the two.
        alpha, beta: What the first distance buys, and how fast that is lost. β ≤ 0: nothing is lost.
        alpha_interval, beta_interval, peak_interval: 95 %, by resampling prompts or runs; NaN where neither is known, and
            of the peak inf where it is not below all distances.
        largest: The largest d that was seen.
        residual: Root mean square of what the fit leaves.
    """

    form: Form
    alpha: float
    beta: float
    largest: float
    residual: float
    alpha_interval: Interval = (nan, nan)
    beta_interval: Interval = (nan, nan)
    peak_interval: Interval = (nan, nan)

    @property
    def peak(self) -> float | None:
        """d* at which gold is highest: α / 2β, or exp(α / β − 1); None where it is beyond the largest d, i.e. not reached.

        0 where gold is nowhere above the start's.
        """
        found = _peak(self.form, self.alpha, self.beta, self.largest)
        return found if found <= self.largest else None

    @property
    def gold_at_peak(self) -> float | None:
        """R(d*), None where the peak is not reached."""
        return None if self.peak is None else float(self.gold_at(np.array([self.peak]))[0])

    def gold_at(self, distances: np.ndarray) -> np.ndarray:
        """R(d), `(K,)`."""
        return distances * (self.alpha - self.beta * FORMS[self.form](distances))

    def as_dict(self) -> dict[str, Any]:
        """What JSON takes: numbers, None for the peak that is not reached and for what nobody knows."""
        found = asdict(self) | {"peak": self.peak, "gold_at_peak": self.gold_at_peak}
        return {name: _plain(value) for name, value in found.items()}

    def __str__(self) -> str:
        intervals = (self.alpha_interval, self.beta_interval)
        a, b = (_said(v, i) for v, i in zip((self.alpha, self.beta), intervals, strict=True))
        peak = f"not reached (the largest d is {self.largest:.2f})"
        if self.peak is not None:
            peak = f"{_said(self.peak, self.peak_interval)}, KL {self.peak**2:.2f}, gold {self.gold_at_peak:z.2f}"
        return f"R = d ({self.form}): α {a}, β {b}; peak d* {peak}; residual {self.residual:.3f}"


def fit_best_of_n(kl: Sequence[float], gold: np.ndarray) -> Overoptimization:
    """Fit R = d(α − β d) by least squares, with intervals by resampling the prompts.

    >>> print(fit_best_of_n([0, 1, 4, 9], [[0, 1.5, 2.0, 1.5]]))  # d (2 − ½ d)
    R = d (α − β d): α 2.00, β 0.50; peak d* 2.00, KL 4.00, gold 2.00; residual 0.000

    Args:
        kl: In nats, `(K,)`.
        gold: Of each prompt, `(P, K)`: how far the best of n is above the start, in deviations of the start's samples.
    """
    distances, gold = _distances(kl, "fit_best_of_n"), _numbers(gold, "fit_best_of_n(gold=…)")
    if gold.ndim != 2 or gold.shape[1] != len(distances) or not len(gold) or not np.isfinite(gold).all():
        raise ValueError(
            f"fit_best_of_n(gold=…): expected finite numbers for each prompt and each of {len(distances)} values of KL, "
            f"got an array of shape {gold.shape}. Give an array of prompts by values of KL."
        )
    means = [gold.mean(0), *_resampled_means(gold)]
    return _fitted("α − β d", distances, means[0], [(distances, mean) for mean in means[1:]])


def fit_checkpoints(points: Sequence[tuple[float, float]], *, runs: Sequence | None = None) -> Overoptimization:
    """Fit R = d(α − β log d), the form of reinforcement learning, to checkpoints of runs from one start.

    Not for best-of-n, which has a form of its own.

    >>> print(fit_checkpoints([(1.0, 2.0), (4.0, 4 - 2 * np.log(2)), (16.0, 8 - 8 * np.log(2))]))  # d (2 − log d)
    R = d (α − β log d): α 2.00, β 1.00; peak d* 2.72, KL 7.39, gold 2.72; residual 0.000

    Args:
        points: KL to the start in nats, and gold, in units in which the start has mean 0 and deviation 1.
        runs: Which run each is of, for intervals by resampling them, from two runs on: checkpoints of one run are no
            independent ones.
    """
    points = _numbers(points, "fit_checkpoints(points=…)")
    if runs is not None and (len(runs) != len(points) or not all(isinstance(run, Hashable) for run in runs)):
        raise ValueError(
            f"fit_checkpoints(runs=…): expected the run of each of {len(points)} points, got {len(runs)}. Give as many."
        )
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(
            "fit_checkpoints(points=…): expected pairs of KL and gold, finite numbers. Leave out what is none."
        )
    distances, gold = _distances(points[:, 0], "fit_checkpoints"), points[:, 1]
    resamples = [] if runs is None else [(distances[i], gold[i]) for i in _resampled_runs(runs)]
    return _fitted("α − β log d", distances, gold, resamples)


def _numbers(values: Any, call: str) -> np.ndarray:
    try:
        return np.array(values if isinstance(values, np.ndarray) else list(values), dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{call}: expected finite numbers, got {values!r:.60} ({error}). Leave out what is none."
        ) from error


def _distances(kl: Sequence[float], call: str) -> np.ndarray:
    kl = _numbers(kl, call)
    if not (np.isfinite(kl).all() and (kl >= 0).all()):
        raise ValueError(
            f"{call}: expected KL of 0 or more nats, got {kl[~(kl >= 0) | ~np.isfinite(kl)][0]}. Mend it."
        )
    if len(np.unique(kl[kl > 0])) < FEWEST:
        raise ValueError(
            f"{call}: expected at least {FEWEST} different values of KL above 0, got {len(np.unique(kl[kl > 0]))}, through "
            "which any α and β would go. Give more, of best-of-n n = 8 or more samples."
        )
    return np.sqrt(kl)


def _fitted(
    form: Form, distances: np.ndarray, gold: np.ndarray, resamples: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Overoptimization:
    alpha, beta = _least_squares(form, distances, gold)
    largest = float(distances.max())
    found = np.array([_least_squares(form, *resample) for resample in resamples])
    intervals = {}
    if len(found):
        peaks = np.array([_peak(form, *pair, largest) for pair in found])
        columns = {"alpha": found[:, 0], "beta": found[:, 1], "peak": np.where(peaks <= largest, peaks, inf)}
        intervals = {f"{name}_interval": _interval(values) for name, values in columns.items()}
    fit = Overoptimization(form, alpha, beta, largest, 0.0, **intervals)
    residual = sqrt(float(((fit.gold_at(distances) - gold) ** 2).mean()))
    return Overoptimization(form, alpha, beta, largest, residual, **intervals)


def _least_squares(form: Form, distances: np.ndarray, gold: np.ndarray) -> tuple[float, float]:
    design = np.stack([distances, -distances * FORMS[form](distances)], axis=1)
    alpha, beta = np.linalg.lstsq(design, gold, rcond=None)[0]
    return float(alpha), float(beta)


def _peak(form: Form, alpha: float, beta: float, largest: float) -> float:
    """d*; inf where gold never falls, or falls first and then is above the start's; 0 where it is below it."""
    if beta <= 0:
        return 0.0 if alpha - beta * float(FORMS[form](np.array(largest))) < 0 else inf
    if form == "α − β d":
        return max(alpha / (2 * beta), 0.0)
    return exp(min(alpha / beta - 1, 700.0))


def _interval(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, INTERVAL, method="nearest")
    return float(low), float(high)


def _resampled_means(gold: np.ndarray) -> list[np.ndarray]:
    """Of 2000 resamples of the prompts; none where there is but one."""
    if len(gold) < 2:
        return []
    random = np.random.default_rng(0)
    return [gold[random.integers(len(gold), size=len(gold))].mean(0) for _ in range(RESAMPLES)]


def _resampled_runs(runs: Sequence) -> list[np.ndarray]:
    """Of 2000 resamples of the runs, the numbers of their points."""
    places = [np.array([i for i, run in enumerate(runs) if run == one]) for one in dict.fromkeys(runs)]
    if len(places) < 2:
        return []
    random = np.random.default_rng(0)
    return [
        np.concatenate([places[i] for i in random.integers(len(places), size=len(places))]) for _ in range(RESAMPLES)
    ]


def _said(value: float, interval: Interval) -> str:
    low, high = interval
    return (
        f"{value:z.2f}"
        if low != low
        else f"{value:z.2f} [{low:z.2f}, {'not reached' if high == inf else f'{high:z.2f}'}]"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if not isinstance(value, float) or isfinite(value) else None
