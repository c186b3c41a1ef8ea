"""How sure a measure is: the bootstrap over prompts, and how many standard errors so many of them show.

`P` prompts, `M` measures.
"""

from collections.abc import Callable
from functools import cache
from math import atan, cos, inf, pi, sin, sqrt
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
BEYOND_CHANCE = 2.0  # standard errors from which on what was seen is no chance, but for one time in twenty


def standard_errors(measure: Callable[..., np.ndarray], *sums: np.ndarray) -> np.ndarray:
    """Deviation of a measure over resamples of the prompts, with replacement, times √(n / (n − 1)); `(M,)`.

    The factor makes it, for a mean of n prompts, the usual s / √n. NaN where fewer than two prompts have any value.
    `measure` takes sums over prompts, `(M, 2)` each; `sums` are `(P, M, 2)` each, of the same prompts.
    """
    random, count = np.random.default_rng(0), len(sums[0])
    picks = (random.integers(count, size=count) for _ in range(RESAMPLES))
    found = np.ma.masked_invalid([measure(*(each[picked].sum(0) for each in sums)) for picked in picks])
    n = np.min([(each[:, :, 1] > 0).sum(0) for each in sums], axis=0).astype(float)
    return np.ma.filled(found.std(0), np.nan) * np.sqrt(n / np.where(n > 1, n - 1, np.nan))


@cache
def errors_to_see(freedom: float) -> float:
    """How many standard errors a true difference must be, to be seen at 5 % four times in five.

        t(0.975) + t(0.8), of Student's t with so many degrees of freedom: one less than there are independent differences

    A difference is called resolved from so many on; beyond chance, which asks for less, from `BEYOND_CHANCE` on. Many
    give 1.96 + 0.84. Infinite without a degree of freedom.

    >>> [round(errors_to_see(freedom), 2) for freedom in (1, 4, 39, 1e9)]
    [14.08, 3.72, 2.87, 2.8]
    """
    return inf if freedom < 1 else t_quantile(0.975, freedom) + t_quantile(0.8, freedom)


def t_quantile(share: float, freedom: float) -> float:
    """Where that share of Student's t lies below, `share` being above ½; normal from 1000 degrees of freedom on."""
    if freedom > 1000:
        return NormalDist().inv_cdf(share)
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, int(freedom)) < 2 * share - 1 else (low, middle)
    return low


def t_within(t: float, freedom: int) -> float:
    """P(|T| < t) of Student's t with a whole number of degrees of freedom (Abramowitz and Stegun, 26.7.3 and 4)."""
    angle, odd = atan(t / sqrt(freedom)), freedom % 2
    term, total = (cos(angle) if odd else 1.0), 0.0
    for k in range(2 if odd else 1, freedom, 2):
        total += term
        term *= cos(angle) ** 2 * k / (k + 1)
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
