"""How sure a measure is: the bootstrap over prompts.

`P` prompts, `M` measures.
"""

from collections.abc import Callable

import numpy as np

RESAMPLES = 2000
SEEN = 2.8  # standard errors: 1.96 + 0.84, so that a true difference of as many is seen, at 5 %, four times in five


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
