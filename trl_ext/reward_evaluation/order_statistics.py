"""What is known of the best of n before anybody looks at the values. P prompts, N samples of each, n of them chosen from."""

from functools import cache
from math import comb, log

import numpy as np


def chances_to_be_best(scores: np.ndarray, n: int) -> np.ndarray:
    """How likely each sample is the best of n that are drawn from its prompt's N without replacement, `(P, N)`.

        P(i) = [C(b + t, n) − C(b, n)] / (t · C(N, n))    b: samples with a lower score; t: with the same, i included

    Exact, and so without the noise of one subset: Σ_i P(i) · value_i is what re-ranking by the scores is expected to
    choose. Equal scores share their chance. n = 1 is a random choice, n = N the best of all.

    >>> chances_to_be_best(np.array([[1.0, 2.0, 2.0]]), 2).round(3).tolist()
    [[0.0, 0.5, 0.5]]
    """
    count = scores.shape[1]
    if not 1 <= n <= count:
        raise ValueError(
            f"chances_to_be_best(n={n}): expected 1 to {count}, as many as a prompt has samples. Give such."
        )
    ordered = np.sort(scores, axis=1)
    pairs = list(zip(ordered, scores, strict=True))
    below, up_to = (
        np.stack([np.searchsorted(row, own, side=side) for row, own in pairs]) for side in ("left", "right")
    )
    subsets = _shares_of_subsets(count, n)
    return (subsets[up_to] - subsets[below]) / (up_to - below)


@cache
def _shares_of_subsets(count: int, n: int) -> np.ndarray:
    """C(i, n) / C(N, n) for i = 0 … N: whole numbers of hundreds of digits, so once for all tables."""
    all_subsets = comb(count, n)
    return np.array([comb(i, n) / all_subsets for i in range(count + 1)])


def nominal_kl(n: int) -> float:
    """KL of the best of n to the policy, in nats: log n − (n − 1) / n; an upper bound where scores tie.

    >>> round(nominal_kl(32), 2)
    2.5
    """
    return log(n) - (n - 1) / n


def curve_sizes(count: int) -> list[int]:
    """1, 2, 4 … and the number of samples itself.

    >>> curve_sizes(12)
    [1, 2, 4, 8, 12]
    """
    return [2**i for i in range(count.bit_length()) if 2**i < count] + [count]
