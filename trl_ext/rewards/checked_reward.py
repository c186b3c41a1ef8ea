"""Reward functions whose answers are checked row by row, before anything is learned from them."""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable

from torch import Tensor


def checked_reward(function: Callable, *, keep_invalid: bool = False) -> Callable:
    """Wrap a reward function so that a bad answer is an error that names its row.

    Good answers are one finite number per completion, or `None` where the function does not apply. The wrapper keeps
    the function's name and whether it is async. With `keep_invalid`, a number that is not finite comes back as NaN, for
    a caller that drops such rows.

    >>> def length(completions, **kwargs):
    ...     return [float("nan") if not text else len(text) for text in completions]
    >>> checked_reward(length)(prompts=["", ""], completions=["abc", ""])
    Traceback (most recent call last):
    ...
    ValueError: Reward function 'length' returned nan for row 1 (completion ''): expected a finite number, or None \
where it does not apply.
    """
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__name__", type(inner).__name__)
    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(inner.__call__):

        async def scored(**columns):
            return check_scores(await function(**columns), columns["completions"], name, keep_invalid=keep_invalid)

    else:

        def scored(**columns):
            return check_scores(function(**columns), columns["completions"], name, keep_invalid=keep_invalid)

    functools.update_wrapper(scored, function, assigned=("__module__", "__doc__"), updated=())
    scored.__name__ = name
    return scored


def check_scores(scores: Iterable, completions: list, name: str, *, keep_invalid: bool = False) -> list[float | None]:
    """The scores as floats and Nones, or a ValueError that names the first row that is neither."""
    if isinstance(scores, str) or not isinstance(scores, Iterable):
        raise ValueError(
            f"Reward function {name!r} returned {scores!r}: expected a list with one number per completion "
            f"({len(completions)})."
        )
    scores = scores.tolist() if isinstance(scores, Tensor) else list(scores)
    if len(scores) != len(completions):
        raise ValueError(
            f"Reward function {name!r} returned {len(scores)} rewards for {len(completions)} completions: expected one "
            "per completion; return None for those it does not apply to."
        )
    return [_check(score, row, completions[row], name, keep_invalid) for row, score in enumerate(scores)]


def _check(score, row: int, completion, name: str, keep_invalid: bool) -> float | None:
    if score is None:
        return None
    if isinstance(score, Tensor) and score.numel() == 1:
        score = score.item()
    if keep_invalid and isinstance(score, numbers.Real) and not math.isfinite(score):
        return math.nan
    if not isinstance(score, numbers.Real) or not math.isfinite(score):
        raise ValueError(
            f"Reward function {name!r} returned {score!r} for row {row} (completion {completion!r}): expected a finite "
            "number, or None where it does not apply."
        )
    return float(score)
