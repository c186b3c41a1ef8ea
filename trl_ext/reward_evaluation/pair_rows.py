"""Files of pairs as people have them: one chosen and one rejected completion, several of either (RewardBench, RewardBench 2),
or three of both in three styles (RM-Bench)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset

from trl_ext.sequences.preference_rows import CONVERSATIONS, SIDES, preference_row, repeats_prompt, without_repeat
from trl_ext.sequences.prompt_rows import one_split
from trl_ext.sequences.text_shapes import shown
from trl_ext.sequences.texts import Text, text_of
from trl_ext.trainer_kit.near_names import near_name
from trl_ext.trainer_kit.row_files import READERS, UNREADABLE, json_rows, read_rows

Pairs = str | PathLike | Dataset | pd.DataFrame | Sequence[Mapping[str, Any]]
GROUPS = ("source", "subset", "domain")  # by whose values accuracy is shown where nothing is said
STYLES = ("concise", "detailed", "markdown")  # of RM-Bench's completions, in its order


@dataclass(frozen=True)
class Compared:
    """The completions of one prompt.

    Args:
        row: Number of the row in what was given.
        prompt: Text or messages.
        chosen, rejected: The completions; each of the one is better than each of the other.
        others: The row's other columns.
    """

    row: int
    prompt: Text
    chosen: tuple[Text, ...]
    rejected: tuple[Text, ...]
    others: Mapping[str, Any]

    @property
    def completions(self) -> tuple[Text, ...]:
        return self.chosen + self.rejected


def read_pairs(pairs: Pairs, *, as_messages: bool, call: str) -> tuple[list[Compared], list[int]]:
    """The rows that compare something, and the numbers of those that do not, as a completion is both chosen and rejected.

    Raises:
        ValueError: For what is no pairs, with the row and what to do.
    """
    rows = rows_of(pairs, call=call)
    _check_columns(rows, call=call)
    compared = _without_repeats([_compared(row, number, call) for number, row in enumerate(rows)], call)
    alike = [each.row for each in compared if _is_alike(each)]
    compared = [each for each in compared if each.row not in {*alike}]
    if not compared:
        raise ValueError(f"{call}: in all {len(rows)} rows chosen and rejected are the same. Give rows that differ.")
    if alike:
        warnings.warn(
            f"{call}: left out {len(alike)} of {len(rows)} rows, in which a completion is both chosen and rejected, the first "
            f"is row {alike[0]}.",
            stacklevel=3,
        )
    if as_messages:
        compared = [_as_messages(each) for each in compared]
    _check_one_form(compared, call)
    return compared, alike


def rows_of(pairs: Pairs, *, call: str) -> list[dict[str, Any]]:
    """Of a file, a table or a list; there is at least one."""
    if isinstance(pairs, str | PathLike):
        rows = _of_file(Path(fspath(pairs)).expanduser(), call)
    elif isinstance(pairs, pd.DataFrame):
        rows = Dataset.from_pandas(pairs, preserve_index=False).to_list()
    elif isinstance(pairs, Dataset):
        rows = pairs.with_format(None).to_list()
    elif isinstance(pairs, Sequence) and all(isinstance(row, Mapping) for row in pairs):
        rows = [dict(row) for row in pairs]
    else:
        one_split(pairs, call=call)
        kind = type(pairs).__name__
        raise ValueError(f"{call}: expected a file, a Dataset, a data frame or a list of rows, got {kind}. Give one.")
    if not rows:
        raise ValueError(f"{call}: there are no rows. Give at least one, better some hundreds.")
    return rows


def chosen_groups(compared: list[Compared], by: Sequence[str] | None, subsets: Sequence[str] | None, *, call: str):
    """Columns by which accuracy is shown, and the rows of the subsets that are asked for."""
    there = list(dict.fromkeys(name for each in compared for name in each.others))
    missing = next((name for name in by or () if name not in there), None)
    if missing is not None:
        raise ValueError(
            f"{call}(by={missing!r}): the rows have the columns {there}. Name one of them, or leave it out."
        )
    by = [name for name in GROUPS if name in there] if by is None else list(by)
    if subsets is None:
        return by, compared
    known = list(dict.fromkeys(str(each.others[name]) for each in compared for name in by if name in each.others))
    unknown = next((name for name in subsets if str(name) not in known), None)
    if unknown is not None:
        near = near_name(str(unknown), known)
        said = f"Did you mean {near!r}?" if near else f"There are {shown(known, 300)}."
        raise ValueError(f"{call}(subsets={unknown!r}): no row has that value in a column of {by}. {said}")
    wanted = {str(name) for name in subsets}
    return by, [each for each in compared if wanted & {str(each.others.get(name)) for name in by}]


def in_styles(compared: list[Compared]) -> bool:
    """Whether all rows are RM-Bench's: three completions of either kind, in its styles' order."""
    return all(len(each.chosen) == len(each.rejected) == len(STYLES) for each in compared)


def _of_file(path: Path, call: str) -> list[dict[str, Any]]:
    if path.suffix not in READERS or not path.is_file():
        raise ValueError(f"{call}: {path}: expected a file that ends in {', '.join(READERS)}. There is none.")
    try:
        if path.suffix in (".json", ".jsonl"):  # row by row: `rejected` may be one text here and several there
            return list(json_rows(path))
        return read_rows(path, text=("prompt", *SIDES)).to_list()
    except UNREADABLE as error:
        raise ValueError(
            f"{call}: {path} cannot be read ({str(error).splitlines()[0]}). Mend or replace it."
        ) from error


def _check_columns(rows: list[dict[str, Any]], *, call: str) -> None:
    for number, row in enumerate(rows):
        missing = next((side for side in SIDES if row.get(side) is None or row[side] == []), None)
        if missing is not None:
            raise ValueError(
                f"{call}: row {number} has no {missing!r}, and so nobody says which completion is the better; its columns "
                f"are {list(row)}. Expected `prompt`, `chosen` and `rejected`: rename yours, or drop such rows."
            )


def _compared(row: dict[str, Any], number: int, call: str) -> Compared:
    where = f"{call}: row {number}"
    chosen, rejected = _several(row["chosen"]), _several(row["rejected"])
    read = [_read(row, one, other, where) for one in chosen[:1] for other in rejected]
    read += [_read(row, one, rejected[0], where) for one in chosen[1:]]
    if any(each["prompt"] != read[0]["prompt"] for each in read):
        raise ValueError(f"{where}: its conversations have not one prompt. Give it in a column `prompt`, alone.")
    ours = [read[0]["chosen"], *(each["chosen"] for each in read[len(rejected) :])]
    others = {name: value for name, value in row.items() if name not in ("prompt", CONVERSATIONS, *SIDES)}
    theirs = tuple(each["rejected"] for each in read[: len(rejected)])
    return Compared(number, read[0]["prompt"], tuple(ours), theirs, others)


def _several(completions: Any) -> list[Any]:
    """Completions of a column that holds one, text or messages, or a list of them."""
    several = isinstance(completions, list) and completions and all(isinstance(one, str | list) for one in completions)
    return completions if several else [completions]


def _read(row: dict[str, Any], chosen: Any, rejected: Any, where: str) -> dict[str, Text]:
    pair = {"chosen": chosen, "rejected": rejected}
    name = next((name for name in ("prompt", CONVERSATIONS) if row.get(name) is not None), None)
    if name is None and isinstance(chosen, str) and isinstance(rejected, str):
        raise ValueError(f"{where} has no 'prompt'. Rename the column that has it, or give whole conversations.")
    pair["prompt"] = None if name is None else row[name]
    try:
        read = preference_row(pair)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return read


def _without_repeats(compared: list[Compared], call: str) -> list[Compared]:
    """Text that repeats its prompt in all completions of all rows has it once, as for the trainer of reward models."""
    for each in compared:
        pairs = [{"prompt": each.prompt, "chosen": text, "rejected": text} for text in each.completions]
        if not all(map(repeats_prompt, pairs)):
            return compared
    warnings.warn(f"{call}: all completions begin with their prompt. They are read without it.", stacklevel=4)
    return [
        replace(each, **{side: tuple(_behind(each.prompt, text) for text in getattr(each, side)) for side in SIDES})
        for each in compared
    ]


def _behind(prompt: str, text: str) -> str:
    return without_repeat({"prompt": prompt, "chosen": text, "rejected": text})["chosen"]


def _is_alike(each: Compared) -> bool:
    said = [{text_of(text).strip() or repr(text) for text in side} for side in (each.chosen, each.rejected)]
    return bool(said[0] & said[1])


def _as_messages(each: Compared) -> Compared:
    """Text as what a user asks and an assistant answers, as RewardBench reads it; messages as they are."""
    if not isinstance(each.prompt, str):
        return each
    sides = {side: tuple([{"role": "assistant", "content": text}] for text in getattr(each, side)) for side in SIDES}
    return replace(each, prompt=[{"role": "user", "content": each.prompt}], **sides)


def _check_one_form(compared: list[Compared], call: str) -> None:
    forms = {isinstance(each.prompt, str): each.row for each in reversed(compared)}
    if len(forms) > 1:
        raise ValueError(
            f"{call}: row {forms[True]} is text and row {forms[False]} messages. Give all in one form, or "
            "give as_messages=True, which makes messages of text."
        )
