"""Reward functions whose answers are checked row by row, before anything is learned from them."""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Set
from decimal import Decimal
from typing import Any

import numpy as np
from torch import Tensor, finfo, float32

from trl_ext.rewards.reward_columns import check_columns

LARGEST = finfo(float32).max  # which trainers compute in
UNORDERED = str | bytes | Mapping | Set  # they can be iterated, and are no list of scores


def reward_name(function: Callable) -> str:
    """What a reward is logged as: a function's name, or an object's class."""
    inner = _unwrapped(function)
    return getattr(inner, "__name__", type(inner).__name__)


def distinct_names(names: list[str]) -> list[str]:
    """The names, told apart by their places where some are alike.

    >>> distinct_names(["near", "judge", "judge"])
    ['near', 'judge_1', 'judge_2']
    """
    while len(set(names)) < len(names):  # again where a name that was made is another's own
        names = [f"{name}_{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]
    return names


def finite_number(value: Any) -> float | None:
    """A number of any library as a float, also a tensor of one element; None for what is none, or not finite.

    >>> finite_number(np.True_), finite_number(Decimal("0.5")), finite_number("1"), finite_number(math.inf)
    (1.0, 0.5, None, None)
    """
    value = _scalar(value)
    if not isinstance(value, numbers.Real | Decimal):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):  # a whole number beyond all floats; a Decimal that signals
        return None
    return number if abs(number) <= LARGEST else None


def checked_reward(function: Callable, *, name: str | None = None, keep_invalid: bool = False) -> Callable:
    """Wrap a reward function so that a bad answer is an error that names its row.

    Good answers are one finite number per completion, or `None` where the function does not apply. The wrapper keeps
    the function's name, unless it is given another, and whether it is async. A name that adds a number to it adds that
    to the metrics which the function logs, too. With `keep_invalid`, a number that is not finite comes back as NaN, for
    a caller that drops such rows.

    >>> def length(completions, **kwargs):
    ...     return [float("nan") if not text else len(text) for text in completions]
    >>> checked_reward(length)(prompts=["", ""], completions=["abc", ""])
    Traceback (most recent call last):
    ...
    ValueError: Reward function 'length' returned nan for row 1 (completion ''): expected a finite number (float32), or \
None where it does not apply.
    """
    inner = _unwrapped(function)
    own_name = reward_name(function)
    name = name or own_name
    end = name.removeprefix(own_name) if name.startswith(own_name) else ""
    if inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(inner.__call__):

        async def scored(**columns):
            return check_scores(
                await function(**_logging(columns, end)), columns["completions"], name, keep_invalid=keep_invalid
            )

    else:

        def scored(**columns):
            return check_scores(
                function(**_logging(columns, end)), columns["completions"], name, keep_invalid=keep_invalid
            )

    functools.update_wrapper(scored, function, assigned=("__module__", "__doc__"), updated=())
    scored.__name__ = name
    scored.__dict__["check_columns"] = functools.partial(check_columns, function)
    return scored


def check_scores(scores: Iterable, completions: list, name: str, *, keep_invalid: bool = False) -> list[float | None]:
    """The scores as floats and Nones, or a ValueError that names the first row that is neither."""
    if not isinstance(scores, Iterable) or isinstance(scores, UNORDERED) or _shape(scores) == ():
        raise ValueError(
            f"Reward function {name!r} returned {scores!r}: expected a list with one number per completion "
            f"({len(completions)})."
        )
    scores = _listed(scores)
    if len(scores) != len(completions):
        raise ValueError(
            f"Reward function {name!r} returned {len(scores)} rewards for {len(completions)} completions: expected one "
            "per completion; return None for those it does not apply to."
        )
    return [_check(score, row, completions[row], name, keep_invalid) for row, score in enumerate(scores)]


def _logging(columns: dict[str, Any], end: str) -> dict[str, Any]:
    """The columns, where `log_metric` adds `end` to each name."""
    log = columns.get("log_metric")
    if log is None or not end:
        return columns
    return columns | {"log_metric": lambda metric, value: log(metric + end, value)}


def _unwrapped(function: Callable) -> Callable:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _check(score: Any, row: int, completion: Any, name: str, keep_invalid: bool) -> float | None:
    if score is None:
        return None
    number = finite_number(score)
    if number is not None:
        return number
    if keep_invalid and isinstance(_scalar(score), numbers.Real | Decimal):
        return math.nan
    raise ValueError(
        f"Reward function {name!r} returned {score!r} for row {row} (completion {completion!r}): expected a finite "
        "number (float32), or None where it does not apply."
    )


def _listed(scores: Iterable) -> list:
    """One entry per row: of `(N,)` and `(N, 1)` a number, of anything wider a row that is none."""
    if isinstance(scores, Tensor | np.ndarray):
        scores = scores[:, 0] if _shape(scores)[1:] == (1,) else scores
        return scores.tolist()
    return list(scores)


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor | np.ndarray) else None


def _scalar(value: Any) -> Any:
    """What is in a tensor or array of one element, and in a number of numpy's."""
    is_one = isinstance(value, np.generic) or (isinstance(value, Tensor | np.ndarray) and math.prod(value.shape) == 1)
    return value.item() if is_one else value
