"""What a measure is over seeds: mean ± deviation, and differences within seeds."""

from math import isnan
from statistics import mean, stdev


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


def paired_difference(values: list[float], others: list[float]) -> str:
    """Mean ± standard error of the differences within seeds; below 2.8 of those it is not resolved.

    >>> paired_difference([3.0, 4.0, 5.2], [1.0, 2.0, 3.0]), paired_difference([1.0, 2.0], [1.0, 1.0])
    ('+2.067 ± 0.067 (resolved)', '+0.500 ± 0.500 (not resolved, below 1.400)')
    """
    pairs = [a - b for a, b in zip(values, others, strict=True)]
    if len(pairs) < 2:
        return f"{pairs[0]:+.3f} (one seed)"
    error = stdev(pairs) / len(pairs) ** 0.5
    resolved = "resolved" if abs(mean(pairs)) > 2.8 * error else f"not resolved, below {2.8 * error:.3f}"
    return f"{mean(pairs):+.3f} ± {error:.3f} ({resolved})"
