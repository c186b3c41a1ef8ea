"""What pairs say of a reward, as formulas. R rows, each one prompt; N pairs, of which a row may have several.

Δ is the chosen completion's score less the rejected one's.
"""

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import numpy as np

QUANTILE = 1.96  # of the standard normal: 95 % lie within ± as much
PRIOR = 10.0  # deviation of a coefficient before anything is seen: far enough to weigh nothing, and finite where pairs part
STEPS = 100  # of Newton's; some ten are enough


class Bin(NamedTuple):
    """Pairs of like confidence: their weights' sum, mean confidence, share that is right."""

    weight: float
    confidence: float
    right: float


def verdicts(gaps: np.ndarray) -> np.ndarray:
    """1 where Δ > 0, 0 where Δ < 0, ½ for a tie.

    >>> verdicts(np.array([2.0, -1.0, 0.0])).tolist()
    [1.0, 0.0, 0.5]
    """
    return (np.sign(gaps) + 1) / 2


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """Between which the true share lies, 95 times in a hundred (Wilson, 1927).

        (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)

    Never beyond 0 and 1, also for few rows and shares near the ends. Where a row's part is a fraction, as of a tie, it is
    too wide rather than too narrow.

    >>> tuple(round(end, 3) for end in wilson_interval(0.8, 10))
    (0.49, 0.943)
    """
    over = QUANTILE**2 / float(count)
    middle, half = share + over / 2, QUANTILE * sqrt(share * (1 - share) / count + over / (4 * count))
    return max((middle - half) / (1 + over), 0.0), min((middle + half) / (1 + over), 1.0)  # rounding may pass the ends


def confidences(gaps: np.ndarray) -> np.ndarray:
    """Of Bradley–Terry in its own verdict: σ(|Δ|), from ½ to 1."""
    return 1 / (1 + np.exp(-np.abs(gaps)))


def calibration_sums(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray, *, bins: int = 10) -> np.ndarray:
    """Of each verdict, in the place of its bin, weight times (1, confidence, right); `(N, bins, 3)`, 0 in other bins.

    Bins part [½, 1] evenly.
    """
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    sums = np.zeros((len(confidence), bins, 3))
    sums[np.arange(len(confidence)), place] = (
        np.stack([np.ones(len(confidence)), confidence, right], 1) * weights[:, None]
    )
    return sums


def reliability(totals: np.ndarray) -> list[Bin]:
    """The bins that have any pairs, of the sums `(bins, 3)`."""
    return [Bin(weight, sure / weight, right / weight) for weight, sure, right in totals.tolist() if weight > 0]


def calibration_error(totals: np.ndarray) -> np.ndarray:
    """Expected calibration error of sums `(…, bins, 3)`: Σ_bins |confidence − right| / Σ weight; 0 is calibrated."""
    return np.abs(totals[..., 1] - totals[..., 2]).sum(-1) / totals[..., 0].sum(-1)


def log_losses(gaps: np.ndarray) -> np.ndarray:
    """−log σ(Δ), in nats: log 2 where a reward cannot tell."""
    return np.logaddexp(0, -gaps)


def same_sign_correlation(totals: np.ndarray) -> np.ndarray:
    """Correlation of two differences, of their sums `(…, 3)` of ab, a² and b²: Σ ab / √(Σ a² Σ b²).

    No mean is subtracted, since which completion comes first is a matter of taste, and turns both signs. NaN where either
    never differs.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return totals[..., 0] / np.sqrt(totals[..., 1] * totals[..., 2])


def correlation(totals: np.ndarray) -> np.ndarray:
    """Pearson's, of sums `(…, 6)` of 1, a, b, ab, a², b². NaN where either never varies."""
    n, a, b, ab, aa, bb = np.moveaxis(totals, -1, 0)
    spread_a, spread_b = np.maximum(n * aa - a * a, 0), np.maximum(n * bb - b * b, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (n * ab - a * b) / np.sqrt(spread_a * spread_b)


def bootstrap_error(measure: Callable[[np.ndarray], np.ndarray], sums: np.ndarray, *, resamples: int = 1000) -> float:
    """Deviation of a measure of sums over rows, `sums` `(R, …)`, over resamples of the rows, times √(R / (R − 1)).

    NaN with fewer than two rows. The measure takes totals of many resamples at once, `(resamples, …)`.
    """
    count = len(sums)
    if count < 2:
        return float("nan")
    random, flat = np.random.default_rng(0), sums.reshape(count, -1)
    times = random.multinomial(count, np.full(count, 1 / count), size=resamples)
    found = measure((times @ flat).reshape(resamples, *sums.shape[1:]))
    return float(np.nanstd(found) * sqrt(count / (count - 1))) if np.isfinite(found).any() else float("nan")


def logistic_fit(features: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients β of P(chosen over rejected) = σ(β · x) and their standard errors, `(K,)` each.

        maximise Σ w log σ(β · x) − |β|² / (2 PRIOR²)    x: `(N, K)`, the chosen completion's less the rejected one's

    By Newton's steps, in which σ' is never quite 0. There is no constant: a pair turned around must give 1 − P. The prior
    keeps β finite where the features part all pairs.
    """
    beta = np.zeros(features.shape[1])
    for _ in range(STEPS):
        share = _sigmoid(features @ beta)
        gradient = features.T @ (weights * (1 - share)) - beta / PRIOR**2
        curvature = (features.T * (weights * share * (1 - share))) @ features + np.eye(len(beta)) / PRIOR**2
        step = np.linalg.solve(curvature, gradient)
        beta = beta + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))  # at most 2 at once
        if np.abs(step).max() < 1e-8:
            break
    return beta, np.sqrt(np.diag(np.linalg.inv(curvature)))


def held_out_gaps(features: np.ndarray, weights: np.ndarray, rows: np.ndarray, *, folds: int = 5) -> np.ndarray:
    """β · x of each pair, `(N,)`, with β fitted on the rows of other folds: what is gained is no fit to chance."""
    order = {row: place % folds for place, row in enumerate(dict.fromkeys(rows.tolist()))}
    fold, gaps = np.array([order[row] for row in rows.tolist()]), np.zeros(len(features))
    for each in range(folds):
        rest = fold != each
        gaps[~rest] = features[~rest] @ logistic_fit(features[rest], weights[rest])[0]
    return gaps


def unit_size(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Differences divided by their root mean square; zeros where there are no differences."""
    size = sqrt(float((weights * values**2).sum() / weights.sum()))
    return values / size if size > 0 else np.zeros_like(values)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -30, 30)))
