"""Which samples of a Grow are learned from: pure functions from scores to a mask.

Shapes: `N` samples. `scores` are finite `(N,)`, `prompts` the number of each sample's prompt, `(N,)`. A mask is True on
samples to keep. Ties go to the sample that comes first, on every run and every machine.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]
Prompts = NDArray[np.integer]
Mask = NDArray[np.bool_]


def best_per_prompt(scores: Scores, prompts: Prompts) -> Mask:
    """The best samples of each prompt, all that share its highest score (RAFT, arXiv:2304.06767, final version).

    A score that only says how good a prompt is changes nothing: adding a constant per prompt keeps the same samples.

    >>> best_per_prompt(np.array([1.0, 3.0, 3.0, 9.0]), np.array([0, 0, 0, 1]))
    array([False,  True,  True,  True])
    """
    return scores == _per_prompt(np.maximum.reduceat, scores, prompts)


def best_overall(scores: Scores, *, acceptance_ratio: float) -> Mask:
    """The top share of all samples, whichever prompts they answer (RAFT, first version).

    Prompts that score high anyway take more places, and some prompts none.

    >>> best_overall(np.array([1.0, 3.0, 2.0, 3.0]), acceptance_ratio=0.25)
    array([False,  True, False, False])

    Args:
        scores: `(N,)`.
        acceptance_ratio: 1/K in the paper, in (0, 1]; at least one sample is kept.
    """
    count = max(1, round(acceptance_ratio * len(scores))) if len(scores) else 0
    return _first(np.argsort(-scores, kind="stable"), count, len(scores))


def above_threshold(scores: Scores, *, threshold: float) -> Mask:
    """Strictly above a fixed value (ReST, arXiv:2308.08998): a sample at the threshold is left out.

    >>> above_threshold(np.array([0.7, 0.71]), threshold=0.7)
    array([False,  True])
    """
    return scores > threshold


def above_percentile(scores: Scores, prompts: Prompts, *, percentile: float) -> Mask:
    """At or above a percentile of the scores of the same prompt (ReST, appendix): 100 keeps each prompt's best.

    >>> above_percentile(np.array([1.0, 2.0, 3.0, 7.0]), np.array([0, 0, 0, 1]), percentile=50)
    array([False,  True,  True,  True])

    Args:
        scores, prompts: `(N,)` each.
        percentile: In [0, 100], by linear interpolation.
    """
    keep = np.zeros(len(scores), dtype=bool)
    for rows in _groups(prompts):
        value = np.percentile(scores[rows], percentile)
        keep[rows] = scores[rows] >= min(value, scores[rows].max())  # interpolation may round past the best
    return keep


def above_interpolation(scores: Scores, prompts: Prompts, *, gamma: float) -> Mask:
    """At or above τ(x) = γ · max + (1 − γ) · mean of the scores of the same prompt (ReST, appendix).

    γ = 0 keeps what is no worse than the prompt's mean, γ = 1 its best.

    >>> above_interpolation(np.array([0.0, 2.0, 4.0, 7.0]), np.array([0, 0, 0, 1]), gamma=0.5)  # τ = 3 and 7
    array([False, False,  True,  True])
    """
    best = _per_prompt(np.maximum.reduceat, scores, prompts)
    counts = _per_prompt(np.add.reduceat, np.ones_like(scores), prompts)
    mean = _per_prompt(np.add.reduceat, scores, prompts) / counts
    return best - scores <= (1 - gamma) * np.maximum(best - mean, 0.0)


def at_most_per_prompt(keep: Mask, scores: Scores, prompts: Prompts, *, count: int) -> Mask:
    """Of the kept samples, at most `count` per prompt, the best first (ReST^EM, arXiv:2312.06585: 10).

    >>> at_most_per_prompt(np.array([True, True, True]), np.array([1.0, 2.0, 2.0]), np.array([0, 0, 0]), count=1)
    array([False,  True, False])
    """
    capped, kept = np.zeros_like(keep), np.flatnonzero(keep)
    order = kept[np.lexsort((-scores[kept], prompts[kept]))]  # by prompt, and there the best first
    starts = _starts(prompts[order])
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    capped[order[place < count]] = True
    return capped


def random_of_same_size(keep: Mask, prompts: Prompts, *, seed: int) -> Mask:
    """As many samples of each prompt as `keep` has, drawn at random: the control that shows selection did it.

    >>> int(random_of_same_size(np.array([True, False, False]), np.array([0, 0, 0]), seed=0).sum())
    1
    """
    rng, drawn = np.random.default_rng(seed), np.zeros_like(keep)
    for rows in _groups(prompts):
        drawn[rng.permutation(rows)[: keep[rows].sum()]] = True
    return drawn


def varied_prompts(scores: Scores, prompts: Prompts) -> Mask:
    """Samples of prompts whose scores differ; where all are alike, none is better than another (RAFT++)."""
    best, worst = (_per_prompt(ufunc.reduceat, scores, prompts) for ufunc in (np.maximum, np.minimum))
    return best > worst


def first_of_each(keys: list) -> Mask:
    """The first of all samples with equal keys.

    >>> first_of_each(["a", "b", "a"])
    array([ True,  True, False])
    """
    seen: set = set()
    return np.array([not (key in seen or seen.add(key)) for key in keys], dtype=bool)


def _groups(prompts: Prompts) -> Iterator[NDArray[np.integer]]:
    """For each prompt the numbers of its samples, in their order."""
    order = np.argsort(prompts, kind="stable")
    starts = _starts(prompts[order]) if len(prompts) else order
    yield from (order[begin:end] for begin, end in pairwise([*starts, len(order)]))


def _per_prompt(reduceat, values: Scores, prompts: Prompts) -> Scores:
    """A reduction over each prompt's samples, given back to each of them, `(N,)`."""
    if not len(prompts):
        return values
    order = np.argsort(prompts, kind="stable")
    starts = _starts(prompts[order])
    sizes = np.diff(np.append(starts, len(prompts)))
    spread = np.empty_like(values)
    spread[order] = np.repeat(reduceat(values[order], starts), sizes)
    return spread


def _starts(sorted_prompts: Prompts) -> NDArray[np.integer]:
    return np.flatnonzero(np.append(True, np.diff(sorted_prompts) != 0))


def _first(order: NDArray[np.integer], count: int, size: int) -> Mask:
    keep = np.zeros(size, dtype=bool)
    keep[order[:count]] = True
    return keep
