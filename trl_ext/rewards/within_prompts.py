"""What of some numbers differs among the completions of one prompt. N completions, each with its prompt as its group."""

from collections import defaultdict
from collections.abc import Sequence
from math import sqrt
from statistics import mean

import numpy as np


def explained_share(part: list[float], whole: list[float], *, groups: list[str]) -> float | None:
    """Share of the variance of `whole` inside groups that `part` explains; None where either never varies.

        R² = (Σ a b)² / (Σ a² Σ b²)    a, b: deviations of `part` and `whole` from their group's mean

    >>> explained_share([1.0, 2.0, 5.0], [10.0, 20.0, 7.0], groups=["x", "x", "y"])
    1.0
    """
    together, apart = _products(part, whole, groups)
    return together**2 / apart if apart else None


def correlation(one: list[float], other: list[float], *, groups: list[str]) -> float | None:
    """Pearson's correlation of the deviations from the group's mean; None where either never varies.

    Relations: its square is `explained_share`; with one group for all it is the usual one; of ranks it is Spearman's.

    >>> correlation([1.0, 2.0, 5.0], [20.0, 10.0, 7.0], groups=["x", "x", "y"])
    -1.0
    """
    together, apart = _products(one, other, groups)
    spread = sqrt(apart)
    return max(-1.0, min(1.0, together / spread)) if spread else None


def _products(one: list[float], other: list[float], groups: Sequence[str]) -> tuple[float, float]:
    """Σ a b, and Σ a² Σ b², of deviations from the group's mean."""
    a, b = deviations(one, groups), deviations(other, groups)
    return sum(x * y for x, y in zip(a, b, strict=True)), sum(x * x for x in a) * sum(y * y for y in b)


def deviations(values: Sequence[float], groups: Sequence[str]) -> list[float]:
    """Of each value, from the mean of its group."""
    members = defaultdict(list)
    for value, group in zip(values, groups, strict=True):
        members[group].append(value)
    means = {group: mean(own) for group, own in members.items()}  # exact: equal values deviate by exactly 0
    return [value - means[group] for value, group in zip(values, groups, strict=True)]


def ranks(values: Sequence[float], groups: Sequence[str]) -> list[float]:
    """Of each value, its rank within its group, from 1 on; equal ones share their mean rank.

    >>> ranks([3.0, 1.0, 3.0, 7.0], ["x", "x", "x", "y"])
    [2.5, 1.0, 2.5, 1.0]
    """
    rows = defaultdict(list)
    for row, group in enumerate(groups):
        rows[group].append(row)
    found = np.empty(len(values))
    for own in rows.values():
        _, place, count = np.unique([values[row] for row in own], return_inverse=True, return_counts=True)
        found[own] = (count.cumsum() - (count - 1) / 2)[place]
    return found.tolist()
