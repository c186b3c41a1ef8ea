"""Ranked lists: several completions of a prompt, of which all pairs are learned from and each is read once."""

import warnings
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset

from trl_ext.reward_modeling.pair_labels import LARGEST, MARGIN, PROBABILITY
from trl_ext.sequences.preference_rows import PROMPT_TOKENS, SIDES, check_complete, preference_row
from trl_ext.trainer_kit.kept_facts import kept

COMPLETIONS, RANKS = "completions", "ranks"  # columns that a user gives
RANKED_IDS = "ranked_ids"  # column: tokens of each completion behind its prompt, best first
_LIST, _RANK = "number of the list", "rank in the list"  # columns while a row has one completion


def are_lists(dataset: Dataset | IterableDataset, columns: list[str], name: str) -> bool:
    """Whether rows are ranked lists; a ValueError where they are so in part, or cannot be read as such."""
    are_pairs = "chosen_ids" in columns or ({*SIDES} <= {*columns} and COMPLETIONS not in columns)
    if RANKS not in columns or are_pairs:
        return False
    call = f"ImitationRewardTrainer: the {name} dataset"
    missing = [column for column in ("prompt", COMPLETIONS) if column not in columns]
    others = [column for column in (*SIDES, MARGIN, PROBABILITY) if column in columns]
    if missing or others:
        what = f"no column {missing[0]!r}" if missing else f"a column {others[0]!r}, which is of pairs"
        raise ValueError(
            f"{call} has a column '{RANKS}' and {what}. Ranked lists have 'prompt', '{COMPLETIONS}' and '{RANKS}', and "
            "pairs 'chosen' and 'rejected': give one of the two."
        )
    if isinstance(dataset, IterableDataset):
        raise ValueError(f"{call} is a stream of ranked lists: expected a datasets.Dataset. Load it whole.")
    return True


def longest_list(dataset: object) -> int:
    """Completions of the longest prepared list; of pairs, 2."""
    has_lists = isinstance(dataset, Dataset) and RANKED_IDS in dataset.column_names
    return max(map(len, dataset[RANKS])) if has_lists else 2


def check_list(row: Mapping[str, Any], index: int, name: str, *, complete: bool) -> None:
    """Raise a ValueError for a row that is no ranked list.

    Args:
        row: With `prompt`, `completions` and `ranks`.
        index, name: Of the row and its data set, for messages.
        complete: Whether each completion must say something.
    """
    where = f"ImitationRewardTrainer: row {index} of the {name} dataset"
    completions, ranks = row[COMPLETIONS], row[RANKS]
    if not isinstance(completions, list) or len(completions) < 2:
        raise ValueError(f"{where}: expected '{COMPLETIONS}' to be a list of 2 or more, got {completions!r}. Drop it.")
    if not isinstance(ranks, list) or len(ranks) != len(completions):
        raise ValueError(f"{where}: expected '{RANKS}' to be a list of {len(completions)} numbers, got {ranks!r}.")
    if not all(_is_rank(rank) for rank in ranks):
        raise ValueError(
            f"{where} has the ranks {ranks}: expected finite numbers from 1, which is the best; equal ones are ties. Scores "
            "of which more is better become ranks by sorting them."
        )
    if len(set(ranks)) < 2:
        raise ValueError(f"{where} has the ranks {ranks}, which are ties only, and prefer nothing. Drop it.")
    for place, completion in enumerate(completions):
        single = {"prompt": row["prompt"]} | dict.fromkeys(SIDES, completion)
        try:
            read = preference_row(single)
        except ValueError as error:
            raise ValueError(f"{where}, completion {place}: {error}") from error
        if complete:
            check_complete(read, SIDES, f"{where}, completion {place},")


def _is_rank(value: Any) -> bool:
    return isinstance(value, int | float) and 1 <= value <= LARGEST


def one_completion_a_row(dataset: Dataset, name: str, *, complete: bool) -> Dataset:
    """Rows as TRL tokenises pairs, one for each completion, which is on both sides; what else a list has is repeated."""
    dataset = dataset.with_format(None)
    rows = dataset.select_columns(["prompt", COMPLETIONS, RANKS])

    def look() -> None:
        for index, row in enumerate(rows):
            check_list(row, index, name, complete=complete)

    kept(rows, "lists", look, by=[complete])
    return dataset.map(
        _singles, batched=True, with_indices=True, remove_columns=dataset.column_names, desc=f"Reading lists of {name}"
    )


def _singles(columns: dict[str, list], indices: list[int]) -> dict[str, list]:
    places = [i for i, completions in enumerate(columns[COMPLETIONS]) for _ in completions]
    texts = [completion for completions in columns[COMPLETIONS] for completion in completions]
    repeated = {
        name: [values[i] for i in places] for name, values in columns.items() if name not in (COMPLETIONS, RANKS)
    }
    ranks = [float(rank) for ranks in columns[RANKS] for rank in ranks]
    return repeated | dict.fromkeys(SIDES, texts) | {_LIST: [indices[i] for i in places], _RANK: ranks}


def lists_again(singles: Dataset, name: str) -> Dataset:
    """Tokenised completions, put together again by their lists, best first.

    A completion that is no longer there, being too long, has no pair; nor has one that repeats a better one. A list without
    a pair is dropped.

    Raises:
        ValueError: If none is left.
    """
    found = zip(singles[_LIST], singles[_RANK], range(len(singles)), strict=True)
    kept, ranks, repeats = [], [], 0
    for _, group in groupby(found, key=lambda one: one[0]):
        members = sorted((rank, place) for _, rank, place in group)
        own = {tuple(singles[place]["chosen_ids"]): (rank, place) for rank, place in reversed(members)}
        members, repeats = sorted(own.values()), repeats + len(members) - len(own)
        if len({rank for rank, _ in members}) > 1:
            kept.append([place for _, place in members])
            ranks.append([rank for rank, _ in members])
    if not kept:
        raise ValueError(
            f"ImitationRewardTrainer: no pair of the {name} dataset is left to learn from: of each list all completions but "
            "one are longer than max_length, or equal. Raise it, or check how they were made."
        )
    if repeats:
        warnings.warn(
            f"ImitationRewardTrainer reads {repeats} completions of the {name} dataset no second time, which are equal to "
            "one of their list that is ranked before them.",
            stacklevel=2,
        )
    return _grouped(singles, kept, ranks)


def _grouped(singles: Dataset, kept: list[list[int]], ranks: list[list[float]]) -> Dataset:
    ids = singles.select([place for places in kept for place in places]).with_format("arrow")["chosen_ids"][:]
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    ends = [0]
    for places in kept:
        ends.append(ends[-1] + len(places))
    table = {RANKED_IDS: pa.ListArray.from_arrays(pa.array(ends, pa.int32()), ids), RANKS: pa.array(ranks)}
    if PROMPT_TOKENS in singles.column_names:
        best = singles.select([places[0] for places in kept])
        table[PROMPT_TOKENS] = pa.array(best[PROMPT_TOKENS][:])
    return Dataset(pa.table(table))
