"""What imitation asks of preference data: where each chosen completion begins, and pairs that can teach something."""

import warnings
from collections.abc import Iterable
from functools import partial
from itertools import chain, islice

from datasets import Dataset, IterableDataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from trl import RewardConfig

from trl_ext.reward_modeling.pair_labels import check_label_columns, check_labels
from trl_ext.reward_modeling.ranked_lists import RANKED_IDS
from trl_ext.sequences.common_prefix import common_length
from trl_ext.sequences.preference_rows import (
    CONVERSATIONS,
    PROMPT_TOKENS,
    SIDES,
    check_complete,
    preference_row,
    repeats_prompt,
    without_repeat,
)
from trl_ext.sequences.prompt_rows import one_split
from trl_ext.sequences.template_check import check_has_template
from trl_ext.sequences.token_ids import prompt_ids, row_template_kwargs
from trl_ext.sequences.unread_columns import warn_of_unread
from trl_ext.sequences.vocabulary import check_ids, check_vocabulary, unread_tokens
from trl_ext.sequences.windows import model_window
from trl_ext.trainer_kit.kept_facts import kept

TRAINER = "ImitationRewardTrainer"
FIRST = 32  # rows of a stream that are looked at ahead, where one would say too little
_PAIRS = (("chosen_ids", "rejected_ids"), ("chosen_input_ids", "rejected_input_ids"), SIDES)
_LOOKED_AT = {column for pair in _PAIRS for column in pair} | {PROMPT_TOKENS, "prompt", CONVERSATIONS}


def check_data(train: object, evaluation: object) -> None:
    """Raise a ValueError for a data set that is none, or has no row; several to evaluate are named by their keys."""
    several = evaluation if isinstance(evaluation, dict) else {"eval": evaluation}
    for name, rows in {"train": train, **several}.items():
        if rows is not None:
            columns_of(rows, name)


def check_readable(dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise a ValueError for messages without a chat template; warn of what is not read of the first rows."""
    call = f"ImitationRewardTrainer: the {name} dataset"
    check_has_template([next(iter(dataset))["chosen"]], tokenizer, call=call)
    warn_of_unread(dataset, ["prompt", *SIDES], call=call)


def columns_of(dataset: Dataset | IterableDataset, name: str) -> list[str]:
    """The columns of a data set, which must be one, and have a row."""
    call = f"ImitationRewardTrainer: the {name} dataset"
    one_split(dataset, call=call)
    if not isinstance(dataset, Dataset | IterableDataset):
        raise ValueError(
            f"{call} is of type {type(dataset).__name__}: expected a datasets.Dataset, or a stream. A list becomes one "
            "with Dataset.from_list(rows)."
        )
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"{call} is empty; expected preference pairs, with the columns 'chosen' and 'rejected'.")
    return list(first)


def check_pairs(
    dataset: Dataset | IterableDataset, columns: list[str], name: str, *, complete: bool = True, call: str = TRAINER
) -> Dataset | IterableDataset:
    """The same rows in TRL's shape, as `preference_row` reads them; of a stream, they are looked at as they come.

    Text that repeats its prompt in both completions of each row, or of a stream's first ones, has it once.

    Args:
        dataset: Text or messages in `chosen` and `rejected`, or their tokens.
        columns: Those of its first row.
        name: Of the data set, for messages.
        complete: Whether each row must have two completions.
        call: Who asks, for messages.

    Raises:
        ValueError: If a column is missing, for the first row that is no pair, or whose label
            the loss cannot take.
    """
    pair = next((pair for pair in _PAIRS if set(pair) <= set(columns)), None)
    if pair is None:
        raise ValueError(
            f"{call}: the {name} dataset has the columns {columns}; expected 'chosen' and 'rejected', "
            "with or without 'prompt', or 'chosen_ids' and 'rejected_ids'; or of ranked lists 'prompt', 'completions' and "
            "'ranks'. Rename or add them."
        )
    dataset = dataset.with_format(None)  # lists, not tensors
    read = partial(_read, pair=pair, name=name, complete=complete, call=call)
    renamed = [CONVERSATIONS] if pair == SIDES and CONVERSATIONS in columns and "prompt" not in columns else []
    if isinstance(dataset, IterableDataset):
        dataset = dataset.map(read, with_indices=True, remove_columns=renamed)
        repeats = pair == SIDES and all(map(repeats_prompt, islice(dataset, FIRST)))
        return _without_repeats(dataset, name, call) if repeats else dataset
    check_label_columns(dataset, name, call=call)
    rows = dataset.select_columns([column for column in columns if column in _LOOKED_AT])

    def look() -> tuple[bool, bool]:
        changes, repeats = False, pair == SIDES
        for index, row in enumerate(rows):
            came = read(row, index)
            changes, repeats = changes or came != row, repeats and repeats_prompt(came)
        return changes, repeats

    changes, repeats = kept(rows, "pairs", look, by=[pair, complete])
    if changes:
        dataset = dataset.map(read, with_indices=True, remove_columns=renamed, desc=f"Reading pairs of {name}")
    return _without_repeats(dataset, name, call) if repeats else dataset


def _without_repeats(dataset: Dataset | IterableDataset, name: str, call: str) -> Dataset | IterableDataset:
    rows = "each row" if isinstance(dataset, Dataset) else f"each of the first {FIRST} rows"
    warnings.warn(
        f"{call}: in {rows} of the {name} dataset both completions begin with the prompt. They are read without it.",
        stacklevel=2,
    )
    return dataset.map(without_repeat)


def _read(row: dict, index: int, *, pair: tuple[str, str], name: str, complete: bool, call: str) -> dict:
    """A row, which has two completions, in TRL's shape."""
    where = f"{call}: row {index} of the {name} dataset"
    check_labels(row, index, name, call=call)  # of a stream, whose columns cannot be read ahead
    if complete:
        check_complete(row, pair, where)
    if pair != SIDES:
        return row
    try:
        read = preference_row(row)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if complete:
        check_complete(read, pair, where)
    is_renamed = "prompt" in read and "prompt" not in row
    return {column: value for column, value in row.items() if not (is_renamed and column == CONVERSATIONS)} | read


def with_prompt_lengths(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase | None, *, num_proc: int | None = None
) -> Dataset | IterableDataset:
    """Add the column that says how many of `chosen_ids` stand before the completion.

    Args:
        dataset: Tokenised pairs, with the columns that they were made from.
        tokenizer: What made them; None where they came tokenised, so that the pair's common prefix is the prompt.
        num_proc: Processes that share the work, unless it is a stream.
    """
    options = {"num_proc": num_proc, "desc": "Finding completions"} if isinstance(dataset, Dataset) else {}
    return dataset.map(lambda row: {PROMPT_TOKENS: prompt_tokens(row, tokenizer)}, **options)


def prompt_tokens(row: dict, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """How many of a row's `chosen_ids` stand before the completion.

    A prompt that is given is tokenised (messages by the chat template, up to where the assistant speaks); the
    completion begins where that and the whole part ways, so a token that merges the end of the one with the beginning
    of the other is the completion's. Messages without a prompt have as prompt those that the pair shares, and all
    else the tokens that it shares.

    >>> prompt_tokens({"chosen_ids": [5, 6, 7, 1], "rejected_ids": [5, 6, 8, 1]}, tokenizer=None)
    2
    """
    prompt = _prompt_of(row) if tokenizer is not None else None
    if prompt is None or prompt == []:
        return common_length([row["chosen_ids"], row["rejected_ids"]])
    return common_length([prompt_ids(prompt, tokenizer, row_template_kwargs(row)), row["chosen_ids"]])


def _prompt_of(row: dict) -> str | list[dict] | None:
    if "prompt" in row:
        return row["prompt"]
    if isinstance(row["chosen"], list):
        return row["chosen"][: min(common_length([row["chosen"], row["rejected"]]), len(row["chosen"]) - 1)]
    return None


def without_ties(dataset: Dataset | IterableDataset, name: str) -> Dataset | IterableDataset:
    """Only pairs whose completions differ: equal ones prefer nothing. Warns once, of a data set with their number.

    Raises:
        ValueError: If no pair is left.
    """
    _check_left(dataset, name, "each has a completion longer than max_length. Raise it, or shorten them")
    if isinstance(dataset, IterableDataset):
        kept = dataset.filter(_Different(name))
    else:
        columns = ["chosen_ids", "rejected_ids"]
        kept = dataset.filter(lambda *pair: pair[0] != pair[1], input_columns=columns, desc=f"Dropping ties of {name}")
    _check_left(kept, name, "the chosen and the rejected completion are equal in each. Check how they were made")
    if isinstance(kept, Dataset) and len(kept) < len(dataset):
        _warn_of_ties(f"{len(dataset) - len(kept)} of {len(dataset)} pairs", name)
    return kept


def _check_left(dataset: Dataset | IterableDataset, name: str, otherwise: str) -> None:
    if next(iter(dataset), None) is None:
        raise ValueError(f"ImitationRewardTrainer: no pair of the {name} dataset is left to learn from: {otherwise}.")


class _Different:
    """Whether a row's completions differ; warns at the first that do not, since a stream cannot be counted ahead."""

    def __init__(self, name: str):
        self.name = name
        self.warned = False

    def __call__(self, row: dict) -> bool:
        different = row["chosen_ids"] != row["rejected_ids"]
        if not (different or self.warned):
            self.warned = True
            _warn_of_ties("pairs", self.name)
        return different


def _warn_of_ties(what: str, name: str) -> None:
    message = f"ImitationRewardTrainer drops {what} of the {name} dataset whose two completions are equal."
    warnings.warn(message, stacklevel=2)


def check_pair_tokens(
    datasets: Iterable[object], tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> None:
    """Raise a ValueError for tokenised pairs, or padding, with a token that the model has no embedding for.

    Streams are not looked at.
    """
    call = "ImitationRewardTrainer(model=…)"
    check_vocabulary(tokenizer, config, call=call, pad_token_id=tokenizer.pad_token_id)
    for dataset in datasets if unread_tokens(tokenizer, config) else ():
        for column in _token_columns(dataset):
            rows = dataset[column][:]
            ids = chain.from_iterable(rows) if column == RANKED_IDS else rows
            check_ids(ids, tokenizer, config, call=call)


def _token_columns(dataset: object) -> list[str]:
    columns = dataset.column_names if isinstance(dataset, Dataset) else []
    return [column for column in ("chosen_ids", "rejected_ids", RANKED_IDS) if column in columns]


def check_max_length(args: RewardConfig, config: PretrainedConfig) -> None:
    """Raise a ValueError for sequences that would pass the model's window."""
    window = model_window(config)
    if window is not None and args.max_length is not None and args.max_length > window:
        raise ValueError(
            f"{type(args).__name__}(max_length={args.max_length}): the model's window has {window} positions. Set "
            f"max_length={window} (pairs with longer completions are dropped), or less."
        )
