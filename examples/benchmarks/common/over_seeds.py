"""What a measure is over seeds: mean ± deviation, and differences within seeds."""

from collections import Counter
from collections.abc import Sequence
from math import isnan
from statistics import mean, stdev

from trl_ext.trainer_kit.resampling import errors_to_see


def mean_and_deviation(values: list[float], sign: str = "", digits: int = 2) -> str:
    """Over seeds; a dash where a measure does not apply, which is NaN.

    >>> mean_and_deviation([1.0, 2.0, 3.0]), mean_and_deviation([1.0], sign="+"), mean_and_deviation([float("nan")])
    ('2.00 ± 1.00', '+1.00 ± 0.00', '–')
    """
    if any(map(isnan, values)):
        return "–"
    return f"{mean(values):{sign}.{digits}f} ± {stdev(values) if len(values) > 1 else 0:.{digits}f}"


def differences_and_signs(values: list[float]) -> str:
    """Differences within seeds, and in how many seeds they are above 0.

    >>> differences_and_signs([1.0, 2.0, -3.0])
    '+0.00 ± 2.65 (2/3)'
    """
    text = mean_and_deviation(values, "+")
    return text if text == "–" else f"{text} ({sum(value > 0 for value in values)}/{len(values)})"


def paired_difference(values: Sequence[float], others: Sequence[float], groups: Sequence | None = None) -> str:
    """Mean ± standard error of the differences within seeds, or prompts, and whether it is resolved.

    It is from `errors_to_see` standard errors on: 3.7 of five seeds, 2.8 of very many. Below, what so many could have
    shown is said, unless all are the same. Differences of one group, as prompts of one task, may go together: the error is then between groups.

    >>> paired_difference([3.0, 4.0, 5.2], [1.0, 2.0, 3.0]), paired_difference([1.0, 2.0], [1.0, 1.0])
    ('+2.067 ± 0.067 (resolved)', '+0.500 ± 0.500 (not resolved, below 7.041)')
    """
    pairs = [a - b for a, b in zip(values, others, strict=True)]
    if not any(pairs):
        return "the same"
    groups = range(len(pairs)) if groups is None else groups
    independent = len(set(groups))
    if independent < 2:
        return f"{mean(pairs):+.3f} (one {'seed' if len(pairs) == 1 else 'group'})"
    error = standard_error(pairs, groups)
    seen = errors_to_see(independent - 1) * error
    resolved = "resolved" if abs(mean(pairs)) > seen else f"not resolved, below {seen:.3f}"
    return f"{mean(pairs):+.3f} ± {error:.3f} ({resolved})"


def standard_error(values: Sequence[float], groups: Sequence) -> float:
    """Of a mean of n values in G groups, robust to whatever goes on within them; s / √n where each is its own.

        √(G / (G − 1) · Σ_g (Σ_{i in g} (v_i − v̄))²) / n

    >>> standard_error([0.0, 2.0], "ab"), standard_error([0.0, 0.0, 2.0, 2.0], "aabb")
    (1.0, 1.0)
    """
    middle, sums = mean(values), Counter()
    for value, group in zip(values, groups, strict=True):
        sums[group] += value - middle
    return (len(sums) / (len(sums) - 1) * sum(each**2 for each in sums.values())) ** 0.5 / len(values)
