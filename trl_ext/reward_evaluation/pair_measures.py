"""What is measured of scored pairs: by name a number, its error, and the sums over rows of which it is made. R rows."""

from collections.abc import Iterable
from math import isfinite
from typing import Any

import numpy as np

from trl_ext.reward_evaluation.pair_statistics import (
    bootstrap_error,
    calibration_error,
    calibration_sums,
    confidences,
    correlation,
    held_out_gaps,
    log_losses,
    logistic_fit,
    same_sign_correlation,
    unit_size,
    verdicts,
    wilson_interval,
)
from trl_ext.reward_evaluation.scored_pairs import ScoredPairs

FEWEST = 30  # rows, below which intervals say little more than that
FITTED = 10  # rows, below which no model is fitted to them
Sums = dict[str, np.ndarray]


def measured_sums(pairs: ScoredPairs, by: Iterable[str]) -> Sums:
    """Of each measure that is a mean, of each row Σ of its values and how many they are, `(R, 2)`."""
    sums = {"accuracy": _means(pairs.right)}
    sums |= {f"accuracy, {level}": _means(right) for level, right in pairs.right_by_level.items()}
    shorter, ones = pairs.longer_by < 0, np.ones(len(pairs.gaps))
    sums["accuracy, chosen is shorter"] = np.stack(
        [pairs.sums_by_row(verdicts(pairs.gaps), shorter), pairs.sums_by_row(ones, shorter)], 1
    )
    sums["log_loss"] = np.stack([pairs.sums_by_row(log_losses(pairs.gaps)), pairs.sums_by_row(ones)], 1)
    for name, values in groups_of(pairs, by):
        sums[name] = _means(np.where(values, pairs.right, np.nan))
    return sums


def groups_of(pairs: ScoredPairs, by: Iterable[str]) -> list[tuple[str, np.ndarray]]:
    """Of each value of each column, its name and which rows have it, `(R,)`."""
    found = []
    for column in by:
        values = [str(each.others.get(column)) for each in pairs.compared]
        for value in sorted(set(values)):
            found.append((f"{column} {value}", np.array([each == value for each in values])))
    return found


def group_table(pairs: ScoredPairs, by: Iterable[str]) -> dict[str, dict[str, float]]:
    """Of all, and of each group: accuracy with its interval, of how many rows, beside length alone and chance."""
    everything = ("all", np.ones(len(pairs.compared), bool))
    levels = [(level, ~np.isnan(right)) for level, right in pairs.right_by_level.items()]
    found = {}
    for name, rows in [everything, *levels, *groups_of(pairs, by)]:
        right = pairs.right_by_level.get(name, pairs.right)
        scored = rows & ~np.isnan(right)
        entry = {"accuracy": None, "low": None, "high": None, "rows": int(scored.sum())}
        if scored.any():
            share = float(right[scored].mean())
            entry |= dict(
                zip(("accuracy", "low", "high"), (share, *wilson_interval(share, scored.sum())), strict=True)
            )
            by_length = pairs.right_by_level_and_length.get(name, pairs.right_by_length)
            entry["length_only"] = float(by_length[scored].mean())
            entry["chance"] = float(pairs.chance[scored].mean())
        found[name] = entry
    return found


def calibration(pairs: ScoredPairs) -> tuple[dict[str, float | None], np.ndarray]:
    """The expected calibration error ± and what perfect calibration of as many rows would show; the bins' sums."""
    sums = calibration_sums(confidences(pairs.gaps), verdicts(pairs.gaps), pairs.weights)
    by_row = np.zeros((len(pairs.compared), *sums.shape[1:]))
    np.add.at(by_row, pairs.rows, sums)
    totals = by_row.sum(0)
    return {
        "ece": float(calibration_error(totals)),
        "ece_error": _number(bootstrap_error(calibration_error, by_row[pairs.is_scored])),
        "ece_if_calibrated": _calibrated(pairs, sums),
    }, totals


def length_measures(pairs: ScoredPairs) -> dict[str, float | None]:
    """Correlations of score and of score difference with length, each ± by the bootstrap over rows."""
    scored = [row for row in range(len(pairs.compared)) if pairs.is_scored[row]]
    flat = np.array([_moments(pairs.scores[row], pairs.lengths[row]) for row in scored])
    a, b = pairs.gaps, pairs.longer_by
    products = pairs.sums_by_row(np.stack([a * b, a * a, b * b], 1))[pairs.is_scored]
    return {
        "score_length_correlation": _number(correlation(flat.sum(0))),
        "score_length_correlation_error": _number(bootstrap_error(correlation, flat)),
        "difference_length_correlation": _number(same_sign_correlation(products.sum(0))),
        "difference_length_correlation_error": _number(bootstrap_error(same_sign_correlation, products)),
    }


def beyond_length(pairs: ScoredPairs) -> dict[str, Any] | None:
    """What the score adds to length: a logistic model of both, beside that of length alone; None of fewer than ten rows.

    P(chosen over rejected) = σ(a · Δlength + b · Δscore), each divided by its root mean square; accuracy and log-loss, in
    nats per row, are of rows that the model was not fitted to.
    """
    if pairs.is_scored.sum() < FITTED:
        return None
    weights = pairs.weights
    features = np.stack([unit_size(pairs.longer_by, weights), unit_size(pairs.gaps, weights)], 1)
    (length, score), (length_error, score_error) = logistic_fit(features, weights)
    alone, both = (held_out_gaps(features[:, :count], weights, pairs.rows) for count in (1, 2))
    found = {"length": length, "length_error": length_error, "score": score, "score_error": score_error}
    found |= {"accuracy_length": _mean(pairs, verdicts(alone)), "accuracy_both": _mean(pairs, verdicts(both))}
    found |= {"log_loss_length": _mean(pairs, log_losses(alone)), "log_loss_both": _mean(pairs, log_losses(both))}
    gained = pairs.sums_by_row(np.stack([log_losses(alone) - log_losses(both), verdicts(both) - verdicts(alone)], 1))
    gained = gained[pairs.is_scored]
    errors = gained.std(0, ddof=1) / np.sqrt(len(gained))
    found |= {"log_loss_gain": gained[:, 0].mean(), "log_loss_gain_error": errors[0]}
    found |= {"accuracy_gain": gained[:, 1].mean(), "accuracy_gain_error": errors[1]}
    return {name: float(value) for name, value in found.items()}


def notes_on(pairs: ScoredPairs, left_out: int) -> list[str]:
    """What a reader of the numbers must know."""
    scored, ties = int(pairs.is_scored.sum()), int((pairs.right == 0.5).sum())
    notes = []
    if scored < FEWEST:
        notes.append(f"only {_rows(scored)}: the intervals are wide, and errors ± are rough below {FEWEST}")
    if scored < len(pairs.compared):
        notes.append(
            f"without a score (None), and in no measure, {len(pairs.compared) - scored} of {_rows(len(pairs.compared))}"
        )
    if ties and not pairs.styled:
        notes.append(f"{ties} tie{'s' * (ties > 1)} count{'s' * (ties == 1)} half")
    prompts = len({repr(each.prompt) for each in pairs.compared})
    if prompts < len(pairs.compared):
        notes.append(
            f"{_rows(len(pairs.compared))} of {prompts} prompt{'s' * (prompts != 1)}: intervals and errors take rows as independent, "
            "and are narrower than they should be"
        )
    if left_out:
        notes.append(f"left out {_rows(left_out)}: a completion is both chosen and rejected")
    return notes


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _calibrated(pairs: ScoredPairs, sums: np.ndarray, draws: int = 200) -> float:
    """Mean error over draws of who is right by the confidences themselves: what chance alone makes of it."""
    random = np.random.default_rng(0)
    sure = sums[..., 1].sum(1) / pairs.weights
    found = []
    for _ in range(draws):
        drawn = sums.copy()
        drawn[..., 2] = sums[..., 0] * (random.random(len(sure)) < sure)[:, None]
        found.append(calibration_error(drawn.sum(0)))
    return float(np.mean(found))


def _moments(scores: Iterable[float], lengths: Iterable[int]) -> np.ndarray:
    a, b = np.array([*scores], float), np.array([*lengths], float)
    return np.array([len(a), a.sum(), b.sum(), (a * b).sum(), (a * a).sum(), (b * b).sum()])


def _mean(pairs: ScoredPairs, values: np.ndarray) -> float:
    return float((values * pairs.weights).sum() / pairs.weights.sum())


def _means(values: np.ndarray) -> np.ndarray:
    there = ~np.isnan(values)
    return np.stack([np.where(there, values, 0.0), there.astype(float)], 1)


def _number(value: Any) -> float | None:
    return float(value) if isfinite(value) else None
