"""How a logged curve began and how it ended, and how two go together."""

from statistics import mean

import numpy as np

from trl_ext.trainer_kit.logged_run import Run

LEAST = 5  # values of a curve before anything is said of it


def thirds(values: list[float]) -> tuple[float, float] | None:
    """Means of the first and of the last third; None of too few values."""
    if len(values) < LEAST:
        return None
    size = len(values) // 3
    return mean(values[:size]), mean(values[-size:])


def last(run: Run, *names: str) -> float | None:
    """Mean of the last third of the first of some curves that is long enough."""
    found = next((ends for ends in map(thirds, map(run.values, names)) if ends is not None), None)
    return None if found is None else found[1]


def correlated(pairs: list[tuple[float, float]]) -> float:
    """Correlation; 0 where one of the two never changes."""
    values = np.array(pairs, dtype=float).T
    return float(np.corrcoef(values)[0, 1]) if values.std(axis=1).min() > 0 else 0.0
