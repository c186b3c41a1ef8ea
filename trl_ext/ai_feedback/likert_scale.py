"""From the log-probabilities of the grades 1 to 10 to a score. N completions."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import mean

import numpy as np
import torch
from torch import Tensor

MIDDLE, HALF = 5.5, 4.5  # of that scale


def mean_grades(log_probs: Tensor) -> Tensor:
    """s = Σ i · P(i) / Σ P(i) over the grades i from 1 to 10, `(N,)`, from their log P, `(N, 10)`.

    >>> mean_grades(torch.tensor([[0.1, 0, 0, 0, 0, 0, 0, 0, 0, 0.3]]).log())  # (1 · 0.1 + 10 · 0.3) / 0.4
    tensor([7.7500], dtype=torch.float64)
    """
    return log_probs.double().softmax(1) @ torch.arange(1, 11, dtype=torch.float64, device=log_probs.device)


def scores_of(grades: Tensor) -> Tensor:
    """(s − 5.5) / 4.5, in [−1, 1].

    >>> scores_of(torch.tensor([1.0, 5.5, 10.0]))
    tensor([-1.,  0.,  1.])
    """
    return (grades - MIDDLE) / HALF


def spread_within(grades: Sequence[float], groups: Sequence[Hashable], texts: Sequence[Hashable]) -> float | None:
    """Mean over prompts of the deviation of s among their completions; None where no prompt has two that differ. NaN is
    passed over.

    >>> spread_within([4.0, 8.0, 9.0], ["why?", "why?", "who?"], ["a", "b", "c"])
    2.0
    """
    members = defaultdict(dict)
    for grade, group, text in zip(grades, groups, texts, strict=True):
        if grade == grade:
            members[group][text] = grade
    spreads = [float(np.std(list(own.values()))) for own in members.values() if len(own) > 1]
    return mean(spreads) if spreads else None
