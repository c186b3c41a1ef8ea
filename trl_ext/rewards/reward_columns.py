"""Which columns of the data set a reward reads, asked before anything is sampled."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from datasets import Dataset, IterableDataset

from trl_ext.sequences.unread_columns import warn_of_unread

SAMPLED = ("prompt", "completion", "completion_ids")  # rewards get these as they are sampled
GIVEN = frozenset(
    ("prompts", "completions", "completion_ids", "completion_ended", "trainer_state", "log_metric", "log_extra")
)
Columns = Mapping[str, Sequence]


@runtime_checkable
class ReadsColumns(Protocol):
    """A reward that says more of the columns that it reads than its parameters do."""

    def check_columns(self, columns: Columns, rows: Sequence[int]) -> None:
        """Raise a ValueError unless these rows of the columns have what the reward will read, and it can run at all."""


@runtime_checkable
class HasReaders(Protocol):
    """A reward that hands columns on to others, such as a product to its factors."""

    @property
    def column_readers(self) -> Sequence[Callable]: ...


@runtime_checkable
class HoldsModel(Protocol):
    """A reward that asks a model, which is in memory for the whole run; so many completions a pass."""

    batch_size: int

    def held_model(self) -> Any:
        """That model, loaded."""
        ...


def holders_in(reward: object) -> list[HoldsModel]:
    """The reward that holds a model, or those that a reward asks, below the checks that wrap them."""
    inner = getattr(reward, "__wrapped__", reward)
    if isinstance(inner, HasReaders):
        return [holder for reader in inner.column_readers for holder in holders_in(reader)]
    return [inner] if isinstance(inner, HoldsModel) and not isinstance(inner, type) else []


def check_reward_columns(rewards: Iterable[Callable], dataset: Dataset | IterableDataset | None, *, call: str) -> None:
    """Raise a ValueError for the first reward that lacks a column of the data set, or cannot read it.

    Warns of a column that looks like a part of the question, and is read by none of them.

    Args:
        rewards: Callables in TRL's protocol.
        dataset: The rows that they will score; of a stream only the first is looked at. None: there is nothing to check.
        call: Who asks, and where the rows are from, for the message.
    """
    if dataset is None:
        return
    rewards = list(rewards)
    columns, rows = _columns_and_rows(dataset)
    check_all_columns(rewards, columns, rows, call=call)
    named = {name for reward in rewards for name in columns_named(reward)}
    warn_of_unread(dataset, ["prompt"], call=call, others=named)


def check_all_columns(rewards: Iterable[Callable], columns: Columns, rows: Sequence[int], *, call: str) -> None:
    """Ask each of several rewards; `call`: who asks, and where the rows are from, for the message."""
    for reward in rewards:
        try:
            check_columns(reward, columns, rows)
        except ValueError as error:
            raise ValueError(f"{call}: {error}") from error


def check_columns(reward: Callable, columns: Columns, rows: Sequence[int]) -> None:
    """Ask a reward whether it can read some rows of the columns; a function says so by its parameters.

    >>> def exact(completions, answer, **columns): ...
    >>> check_columns(exact, {"solution": ["4"]}, rows=[0])
    Traceback (most recent call last):
    ...
    ValueError: the reward 'exact' reads the column `answer`, and the columns are ['solution']. Add or rename it, or \
give the parameter a default.
    """
    if isinstance(reward, ReadsColumns):
        reward.check_columns(columns, rows)
    missing = [name for name in _required(reward) if name not in columns and name not in GIVEN]
    if missing and rows:
        name, sampled = getattr(reward, "__name__", type(reward).__name__), missing[0] in SAMPLED
        advice = (
            f"Rewards get it as `{missing[0]}s`." if sampled else "Add or rename it, or give the parameter a default."
        )
        raise ValueError(
            f"the reward {name!r} reads the column `{missing[0]}`, and the columns are {own_columns(columns)}. {advice}"
        )


def checked_references(
    reference: Sequence | None, places: Iterable[str], *, call: str, missing: str, instead: str
) -> Sequence[str]:
    """The column `reference`, or a ValueError unless it is there with a text for each place.

    Args:
        reference: The column's values; None where there is no column.
        places: Where each stands, as a message says it, e.g. "in row 3".
        call: Of whom it is asked.
        missing: The end of the message where there is no column.
        instead: What to do but filling in a text.
    """
    if reference is None:
        raise ValueError(f"{call} expected a column `reference` with {missing}")
    for text, place in zip(reference, places, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"{call} expected a text in the column `reference`, got {text!r} {place}. Fill it in, or {instead}."
            )
    return reference


def check_counts(columns: Mapping[str, Any], *, call: str) -> None:
    """Raise a ValueError for a column that has not one value for each of the `completions`.

    >>> check_counts({"completions": ["a", "b"], "prompts": ["c"], "trainer_state": None}, call="Judge")
    Traceback (most recent call last):
    ...
    ValueError: Judge(prompts=…): expected one for each of 2 completions, got 1. Give as many.
    """
    count = len(columns["completions"])
    for name, values in columns.items():
        if isinstance(values, Sequence) and (isinstance(values, str) or len(values) != count):
            got = "text" if isinstance(values, str) else len(values)
            raise ValueError(
                f"{call}({name}=…): expected one for each of {count} completions, got {got}. Give as many."
            )


def check_lists(columns: Mapping[str, Any], *, call: str) -> None:
    """Raise a ValueError for a column that is no list of any kind, or has not one value for each of the `completions`.

    >>> check_lists({"completions": ["a", "b"], "prompts": iter(["a", "b"])}, call="score")
    Traceback (most recent call last):
    ...
    ValueError: score(prompts=…): expected a list, one for each of 2 completions, got list_iterator. Give a list.
    """
    counts = {name: len(values) if _is_list(values) else None for name, values in columns.items()}
    count = counts["completions"]
    for name in ("completions", *counts):
        if counts[name] is None or counts[name] != count:
            kind = "text" if isinstance(columns[name], str) else type(columns[name]).__name__
            got = kind if counts[name] is None else counts[name]
            each = "one for each prompt" if count is None else f"one for each of {count} completions"
            raise ValueError(f"{call}({name}=…): expected a list, {each}, got {got}. Give a list.")


def _is_list(values: Any) -> bool:
    """Of texts, arrays, a data set's column: what has a length and an order."""
    has_places = hasattr(values, "__len__") and hasattr(values, "__getitem__") and getattr(values, "ndim", 1) > 0
    return has_places and not isinstance(values, str | bytes | Mapping)


def reward_columns(dataset: Dataset, rows: list[int]) -> dict[str, list]:
    """What rewards get of some rows: the columns that are not prompts and completions, which they get as sampled."""
    names = [name for name in dataset.column_names if name not in ("prompt", "completion", "completion_ids")]
    table = dataset.select_columns(names)[rows] if names and rows else {}
    return {name: list(values) for name, values in table.items()}


def own_columns(columns: Mapping) -> list[str]:
    """Names of the data set's columns among what a reward gets."""
    return [name for name in columns if name not in GIVEN]


def columns_named(reward: Callable) -> set[str]:
    """What a reward, or one that it hands its columns on to, asks for by name."""
    inner = inspect.unwrap(reward)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    further = inner.column_readers if isinstance(inner, HasReaders) else ()
    return set(_parameters(reward)).union(*map(columns_named, further))


def _required(reward: Callable) -> list[str]:
    """Names of the arguments without which it cannot be called."""
    parameters = _parameters(reward, follow_wrapped=False)
    return [name for name, p in parameters.items() if p.default is inspect.Parameter.empty]


def _parameters(reward: Callable, *, follow_wrapped: bool = True) -> dict[str, inspect.Parameter]:
    """Those that are given by name."""
    try:
        parameters = inspect.signature(reward, follow_wrapped=follow_wrapped).parameters
    except ValueError:  # of some that are written in C
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in by_name}


def _columns_and_rows(dataset: Dataset | IterableDataset) -> tuple[Columns, Sequence[int]]:
    """The columns that reach rewards, prompts as `prompts`, and the numbers of the rows that are looked at."""
    if isinstance(dataset, Dataset):
        return ReadColumns(dataset), range(len(dataset))
    first = next(iter(dataset), {})
    columns, rows = {name: [value] for name, value in first.items()}, range(1 if first else 0)
    prompts = {"prompts": columns["prompt"]} if "prompt" in columns else {}
    return {name: values for name, values in columns.items() if name not in SAMPLED} | prompts, rows


class ReadColumns(Mapping[str, list]):
    """The columns of a data set that reach rewards, each of which is read when it is asked for, whole and once."""

    def __init__(self, dataset: Dataset):
        names = [name for name in dataset.column_names if name not in SAMPLED]
        self._names = dict(zip(names, names, strict=True)) | (
            {"prompts": "prompt"} if "prompt" in dataset.column_names else {}
        )
        self._dataset, self._read = dataset, {}

    def __getitem__(self, name: str) -> list:
        if name not in self._read:
            self._read[name] = self._dataset[self._names[name]][:]
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names
