"""What to conclude of the demo, in words that follow from its numbers.

± is a standard error over held-out questions. A difference is resolved from `errors_to_see` of them on, 2.8 of many, which so
many questions show four times in five; below that it may be there or not.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from trl_ext.trainer_kit.resampling import errors_to_see

METHODS = ("PPO", "RAFT", "ReST")
R3, CLOSED, KL = "R³", "closed questions answered right", "KL to SFT per answer (nats)"
WORDS = "words per closed answer"
Scores = Mapping[str, Mapping[str, np.ndarray]]  # by run and measure, of each question; NaN where it has none


def conclusions(measured: Mapping[str, Mapping[str, float]], scores: Scores, sampled: Mapping[str, int]) -> list[str]:
    """Sentences, each with its figures.

    Args:
        measured: Of each run, each measure's mean.
        scores: The same of each question, of R³ and of closed questions answered right.
        sampled: Answers that each run sampled to learn from.
    """
    return [
        *(_method(run, measured, scores) for run in METHODS),
        _best(measured, scores),
        _control(measured, scores),
        _cost(measured, sampled),
        "± is over the held-out questions of this one run. Another seed may differ by more.",
    ]


class Change(NamedTuple):
    """A mean difference, its standard error, and whether so many questions show it."""

    difference: float
    error: float
    is_resolved: bool


def change(before: np.ndarray, after: np.ndarray) -> Change:
    """Question by question.

    >>> change(np.array([0.0, 0.0, np.nan]), np.array([1.0, 2.0, 1.0]))  # of two, from 14 standard errors on
    Change(difference=1.5, error=0.5, is_resolved=False)
    """
    differences = (after - before)[~np.isnan(after - before)]
    mean, error = float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))
    return Change(mean, error, mean != 0 and abs(mean) >= errors_to_see(len(differences) - 1) * error)


def _moved(measure: str, run: str, measured, scores: Scores) -> tuple[str, str]:
    """What a run did to a measure, and by how much."""
    difference, error, resolved = change(scores["before"][measure], scores[run][measure])
    verb = ("raised" if difference > 0 else "lowered") if resolved else "did not resolvably change"
    before, after = measured["before"][measure], measured[run][measure]
    return verb, f"{before:.3f} to {after:.3f} ({difference:+.3f} ± {error:.3f})"


def _method(run: str, measured, scores: Scores) -> str:
    verb, figures = _moved(R3, run, measured, scores)
    closed, closed_figures = _moved(CLOSED, run, measured, scores)
    return (
        f"{run} {verb} R³ on questions that it was not trained on, from {figures}, and {closed} the share of closed questions "
        f"answered right, from {closed_figures}."
    )


def _best(measured, scores: Scores) -> str:
    first, second = sorted(METHODS, key=lambda run: measured[run][R3], reverse=True)[:2]
    difference, error, resolved = change(scores[second][R3], scores[first][R3])
    verdict = f"which is {'' if resolved else 'not '}resolved"
    return f"Of the three {first} has the highest R³, {difference:.3f} ± {error:.3f} above {second}, {verdict}."


def _control(measured, scores: Scores) -> str:
    closed, closed_figures = _moved(CLOSED, "control", measured, scores)
    verb, figures = _moved(R3, "control", measured, scores)
    before, after = (measured[run][WORDS] for run in ("before", "control"))
    hacked = after > before and "lowered" in (closed, verb)
    moral = (
        "It got longer answers, which it was paid for, at the cost of right ones, which it was not: the product of length and no "
        "repetition alone is got around."
        if hacked
        else "Here that reward was not got around measurably."
    )
    return (
        "The control is paid for length without repetition whatever was asked: its answers to closed questions went from "
        f"{before:.1f} to {after:.1f} words; it {closed} the share answered right, from {closed_figures}, and {verb} R³, from "
        f"{figures}. {moral}"
    )


def _cost(measured, sampled: Mapping[str, int]) -> str:
    parts = []
    for run in METHODS:
        gain, kl = measured[run][R3] - measured["before"][R3], measured[run][KL]
        each = f", {gain / kl:.3f} of R³ per nat" if kl > 0.01 else ""
        parts.append(f"{run} sampled {sampled[run]:,} answers and moved by {kl:.1f} nats per answer{each}")
    return f"What it took: {'; '.join(parts)}."
