"""How well a score tells what belongs together from what was put together by chance. N pairs."""

import random
from collections import Counter
from collections.abc import Hashable, Sequence

from torch import Tensor


def deranged(keys: Sequence[Hashable], *, seed: int) -> list[int]:
    """For each place another at random, whose key differs; each place is taken once.

    Places in random order, equal keys together, are moved on by as many as there are of the commonest key.

    >>> deranged(["a", "b", "a", "c"], seed=0)
    [3, 2, 1, 0]

    Raises:
        ValueError: If more than half of the keys are equal, so that there is none.
    """
    count, rng = Counter(keys), random.Random(seed)
    most = max(count.values(), default=0)
    if 2 * most > len(keys):
        raise ValueError(f"{most} of {len(keys)} are equal")
    group = {key: rng.random() for key in count}
    order = sorted(range(len(keys)), key=lambda i: (group[keys[i]], rng.random()))
    partner = {place: order[(i + most) % len(order)] for i, place in enumerate(order)}
    return [partner[i] for i in range(len(keys))]


def wins(own: Tensor, other: Tensor) -> Tensor:
    """Of each pair 1 where its own score is above the other's, ½ where they are equal, `(N,)`; their mean is the accuracy."""
    return (own > other).float() + 0.5 * (own == other).float()


def area_under_curve(own: Tensor, other: Tensor) -> float:
    """Chance that one of the own scores is above one of the others, whichever pairs they are of (AUC): one threshold for all."""
    return wins(own[:, None], other[None]).mean().item()


def standard_error(values: Tensor) -> float:
    """Of a mean of independent values, s / √N."""
    return (values.std() / len(values) ** 0.5).item()
