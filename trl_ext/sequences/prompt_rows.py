"""Columns of prompts and completions: the one check for all who read them, made before anything is sampled.

A column is read once and each value looked at once: of 100 000 rows, text takes 0.1 s and messages 1.3 s on one core.
"""

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import count, islice
from typing import Any

import pyarrow as pa
from datasets import Dataset

from trl_ext.sequences.prompt_facts import PromptFacts, column_values
from trl_ext.sequences.text_shapes import EXPECTED, Fault, fault_of, shown, with_text
from trl_ext.sequences.texts import Text
from trl_ext.sequences.unread_columns import WHOLE
from trl_ext.trainer_kit.kept_facts import batches, kept


def read_dataset(
    dataset: Dataset | None, *, trainer: str, name: str = "train_dataset", completions: bool = False
) -> Dataset:
    """The data set, once it is known to have rows, and prompts in them.

    Args:
        dataset: As given.
        trainer, name: Which trainer was given it, under which argument.
        completions: Whether its column `completion` is read, if there is one.
    """
    call = f"{trainer}({name}=…)"
    one_split(dataset, call=call)
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"{call}: expected a datasets.Dataset with a column `prompt`, got {type(dataset).__name__}. A stream or a "
            "list becomes one with Dataset.from_list(list(rows))."
        )
    if "prompt" not in dataset.column_names:
        raise lacks_prompts(dataset.column_names, call=call)
    if not len(dataset):
        raise ValueError(f"{call} is empty: expected at least one prompt.")
    images = {"image", "images"} & set(dataset.column_names)
    if images:
        raise ValueError(f"{call} has a column {images.pop()!r}: images are not supported. Drop it.")
    dataset = read_prompts(dataset, call=call)
    if completions and "completion" in dataset.column_names:
        completions_given(dataset, call=call, may_be_missing=name == "train_dataset")
    return dataset


def read_prompts(dataset: Dataset, *, call: str, column: str = "prompt") -> Dataset:
    """The data set, once its prompts are known to be prompts.

    Messages whose content is parts of text have their text instead: few chat templates take both.

    Args:
        dataset: With the column.
        call: Who asks, and where the rows are from, for the message.
        column: With the prompts.

    Raises:
        ValueError: For the first row that is neither text nor messages, or says nothing, or is not like the first one.
    """
    facts = prompt_facts(dataset, call=call, column=column)
    _warn_of_answers(facts, len(dataset), call=call, column=column)
    if not facts.in_parts:
        return dataset
    return dataset.map(lambda prompt: {column: with_text(prompt)}, input_columns=[column], desc="Reading messages")


def prompt_facts(dataset: Dataset, *, call: str, column: str = "prompt") -> PromptFacts:
    """What its prompts are, in one pass over them, of which the result is kept; a ValueError as `read_prompts` raises it."""

    def find() -> dict[str, Any]:
        facts = PromptFacts()
        check_prompts(facts.noted(column_values(dataset, column)), call=call, column=column)
        return asdict(facts)

    return PromptFacts(**kept(dataset, "prompts", find, columns=[column]))


def completions_given(dataset: Dataset, *, call: str, may_be_missing: bool = True) -> int:
    """How many rows have a completion, each in the form of its prompt; a ValueError for the first that is not.

    Args:
        dataset: With prompts that are known to be prompts.
        call, may_be_missing: As for `check_completions`.
    """

    def find() -> int:
        rows, given = count(), 0
        for batch in batches(dataset, columns):
            told = [batch[name] for name in columns]
            numbers = islice(rows, len(told[0]))
            check_completions(*told, call=call, rows=numbers, may_be_missing=may_be_missing)
            given += sum(completion is not None for completion in told[1])
        return given

    columns = ("prompt", "completion")
    return kept(dataset, "completions", find, columns=columns, by=[may_be_missing])


def lacks_prompts(columns: Sequence[str], *, call: str) -> ValueError:
    """What is said of columns without prompts; it names the one that they seem to be in."""
    likely = next((own for name in (*WHOLE, "conversations") for own in columns if own.lower() == name), None)
    line = "" if likely is None else f": dataset = dataset.rename_column({likely!r}, 'prompt')"
    return ValueError(f"{call} has columns {list(columns)}: expected a column `prompt`. Rename yours{line}.")


def one_split(rows: object, *, call: str) -> None:
    """Raise a ValueError for all splits of a data set where one is expected, and for the name of a file or of the hub."""
    if isinstance(rows, str | os.PathLike):
        raise ValueError(f"{call}: expected a data set, got the name {os.fspath(rows)!r}. Read it: {_loading(rows)}.")
    if isinstance(rows, dict):
        raise ValueError(
            f"{call}: expected one data set, got a {type(rows).__name__} of {list(rows)}. Give one of them, e.g. "
            f"dataset[{next(iter(rows), 'train')!r}]."
        )


def _loading(name: str | os.PathLike) -> str:
    """The call that reads a file, or a data set of the hub.

    >>> _loading("prompts.jsonl")
    "datasets.load_dataset('json', data_files='prompts.jsonl', split='train')"
    """
    name = os.fspath(name)
    kind = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}.get(os.path.splitext(name)[1])
    return f"datasets.load_dataset({repr(name) if kind is None else f'{kind!r}, data_files={name!r}'}, split='train')"


def as_dataset(rows: object, *, call: str) -> Dataset:
    """One data set as it is, and a list of rows as one, None where a row lacks a column; a ValueError for anything else."""
    one_split(rows, call=call)
    if isinstance(rows, Dataset):
        return rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"{call}: expected a Dataset, or a list of dicts, a row each; got {type(rows).__name__}. Make one: "
            "Dataset.from_list(rows), or of a file load_dataset."
        )
    names = dict.fromkeys(name for row in rows for name in row)  # `from_list` drops what the first row lacks
    try:
        return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"{call}: its rows are not of one kind ({error}). Give each the same columns and types."
        ) from error


def check_prompts(
    prompts: Iterable,
    *,
    call: str,
    column: str = "prompt",
    rows: Iterable[int] | None = None,
    may_be_empty: bool = False,
) -> None:
    """Raise a ValueError for the first prompt that is neither text nor messages, or not what the first one is.

    Args:
        prompts: What stands for them.
        call, column: As for `read_prompts`.
        rows: Their numbers, for the message; None: 0, 1, …
        may_be_empty: Whether text, or the last message, may say nothing.
    """
    first = None
    for row, prompt in zip(count() if rows is None else rows, prompts, strict=False):
        fault = fault_of(prompt, may_be_empty=may_be_empty)
        if fault is not None:
            raise ValueError(_told(prompt, fault, row, call=call, column=column))
        first = first or (row, isinstance(prompt, str))
        if isinstance(prompt, str) != first[1]:
            one, other = ("text", "messages") if first[1] else ("messages", "text")
            fault = Fault(
                f"of one kind in all rows, and that of row {first[0]} is {one}", f"Make all {one}, or {other}."
            )
            raise ValueError(_told(prompt, fault, row, call=call, column=column))


def check_completions(
    prompts: Sequence[Text],
    completions: Iterable,
    *,
    call: str,
    column: str = "completion",
    rows: Iterable[int] | None = None,
    may_be_missing: bool = False,
) -> None:
    """Raise a ValueError for the first completion that is not in the form of its prompt: text for text.

    Args:
        prompts: Which are in order.
        completions: One of each prompt, which may be empty.
        call, column, rows: As for `check_prompts`.
        may_be_missing: Whether a completion may be None.
    """
    for row, prompt, completion in zip(count() if rows is None else rows, prompts, completions, strict=False):
        if (isinstance(completion, str) and isinstance(prompt, str)) or (completion is None and may_be_missing):
            continue
        fault = None if isinstance(completion, str) else fault_of(completion, may_be_empty=True)
        if fault is None and isinstance(completion, str) != isinstance(prompt, str):
            kind = "text" if isinstance(prompt, str) else "messages"
            fault = Fault(f"and its prompt is {kind}", "Give both as text, or both as messages.")
        if fault is not None:
            raise ValueError(_told(completion, fault, row, call=call, column=column))


def _warn_of_answers(facts: PromptFacts, count: int, *, call: str, column: str) -> None:
    if facts.answered:
        warnings.warn(
            f"{call}: {facts.answered} of {count} prompts, e.g. that of row {facts.first_answered}, end with what the "
            "assistant says, so that it is asked to speak again. If that is the answer, leave it out: "
            f"dataset = dataset.map(lambda row: {{{column!r}: row[{column!r}][:-1]}}).",
            stacklevel=4,
        )


def _told(value: Any, fault: Fault, row: int, *, call: str, column: str) -> str:
    name = column.removesuffix("s") if column in ("prompt", "prompts", "completion", "completions") else f"`{column}`"
    came = f"the {name} of row {row} is {shown(value)}"
    return f"{call}: {came}: expected {EXPECTED}, {fault.what}. {fault.remedy_for(column)}"
