"""What brings the members of an ensemble to one scale. M members, N scores of each on the reference set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Combine = Literal["mean", "min", "mean_minus_variance"]
VARIANCE = "mean_minus_variance"
COMBINES = ("mean", "min", VARIANCE)
VARIANCE_WEIGHT = 0.5  # our choice
ROUNDING = 1e-6  # of the largest score; a float of 32 bits is known to 1e-7
CALL = "EnsembleReward.standardised_on"


@dataclass(frozen=True)
class Standard:
    """Mean and deviation of each member on a reference set, and how far members agree there.

    Bradley–Terry fixes neither offset nor scale of a reward model: unstandardised, the one of the largest scale would decide.

    Args:
        names: The members'.
        means, deviations: `(M,)`.
        correlations: Pearson's, of each two members, `(M, M)`.
        count: N, completions that all members scored.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    correlations: tuple[tuple[float, ...], ...]
    count: int

    def __post_init__(self):
        shapes = {
            "means": (len(self.names),),
            "deviations": (len(self.names),),
            "correlations": (len(self.names),) * 2,
        }
        for name, shape in shapes.items():
            values = _numbers(getattr(self, name))
            if (
                values.shape != shape
                or not np.isfinite(values).all()
                or (name == "deviations" and not (values > 0).all())
            ):
                raise ValueError(
                    f"EnsembleReward's Standard({name}={getattr(self, name)!r:.60}): expected finite numbers of shape {shape}, "
                    "deviations above 0. Take one that standardised_on made."
                )

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> "Standard":
        """From what JSON made of `asdict`."""
        lists = {name: tuple(kept[name]) for name in ("names", "means", "deviations")}
        return cls(**lists, correlations=tuple(map(tuple, kept["correlations"])), count=kept["count"])

    @property
    def mean_correlation(self) -> float:
        """Of different members: near 1, they are as good as one."""
        table = np.array(self.correlations)
        return float(table[~np.eye(len(table), dtype=bool)].mean())

    def applied(self, scores: np.ndarray) -> np.ndarray:
        """z = (score − mean) / deviation, `(…, M)`."""
        return (scores - np.array(self.means)) / np.array(self.deviations)

    def __str__(self) -> str:
        width = max(map(len, self.names))
        rows = zip(self.names, self.means, self.deviations, self.correlations, strict=True)
        lines = [
            f"{name:{width}} {mean:9.3f} {deviation:9.3f}   {' '.join(f'{r:5.2f}' for r in own)}"
            for name, mean, deviation, own in rows
        ]
        head = f"{'member':{width}} {'mean':>9} {'deviation':>9}   correlations over {self.count} completions"
        return "\n".join([head, *lines, f"mean correlation of different members: {self.mean_correlation:.2f}"])


def standard_of(scores: dict[str, Sequence[float | None]]) -> Standard:
    """The standard, from each member's scores by its name; completions that some member does not score are left out.

    >>> print(standard_of({"one": [0.0, 2.0, None], "other": [30.0, 10.0, 5.0]}))
    member      mean deviation   correlations over 2 completions
    one       1.000     1.000    1.00 -1.00
    other    20.000    10.000   -1.00  1.00
    mean correlation of different members: -1.00

    Raises:
        ValueError: With fewer than two completions that all score, or for a member that scores all of them alike.
    """
    table = np.array(list(scores.values()), dtype=float)  # (M, N)
    table = table[:, ~np.isnan(table).any(0)]
    if table.shape[1] < 2:
        raise ValueError(
            f"{CALL}(…): expected at least 2 completions that all members score, got {table.shape[1]}. Give more, e.g. some "
            "hundred of the policy's before training."
        )
    for name, own in zip(scores, table, strict=True):
        if not has_deviation(own):
            raise ValueError(
                f"{CALL}(…): the member {name!r} scores all {len(own)} completions {own[0]:g}, and without a deviation "
                "there is no scale. Leave it out, or give completions that differ more."
            )
    correlations = np.corrcoef(table).clip(-1, 1)
    np.fill_diagonal(correlations, 1.0)
    rows = tuple(map(tuple, correlations.tolist()))
    return Standard(tuple(scores), tuple(table.mean(1).tolist()), tuple(table.std(1).tolist()), rows, table.shape[1])


def has_deviation(scores: np.ndarray) -> bool:
    """Whether scores differ by more than the rounding of 32 bits, which as a deviation would make all of that noise.

    >>> has_deviation(np.array([0.1, 0.1 + 1e-9])), has_deviation(np.array([0.1, 0.1001]))
    (False, True)
    """
    return float(scores.std()) > ROUNDING * float(np.abs(scores).max())


def _numbers(values: Any) -> np.ndarray:
    """As an array; an empty one of what are no numbers."""
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        return np.empty(0)


def combined_scores(z: np.ndarray, combine: Combine, *, variance_weight: float = VARIANCE_WEIGHT) -> np.ndarray:
    """One score per completion, `(N,)`, of standardised scores `(N, M)`.

    >>> z = np.array([[1.0, 3.0]])
    >>> [combined_scores(z, combine).item() for combine in ("mean", "min", "mean_minus_variance")]  # 2 − ½ · 1
    [2.0, 1.0, 1.5]
    """
    if combine == "min":
        return z.min(1)
    return z.mean(1) - (variance_weight * z.var(1) if combine == VARIANCE else 0.0)
