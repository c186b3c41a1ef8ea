"""What imitation asks of preference data: where each chosen completion begins, and pairs that can teach something."""

import warnings
from collections.abc import Iterable, Mapping

from datasets import Dataset, IterableDataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from trl_ext.sequences.common_prefix import common_length
from trl_ext.sequences.token_ids import prompt_ids, row_template_kwargs
from trl_ext.sequences.vocabulary import check_ids, check_vocabulary, unread_tokens

PROMPT_TOKENS = "num_prompt_tokens"  # column: how many of `chosen_ids` stand before the completion
_PAIRS = (("chosen_ids", "rejected_ids"), ("chosen_input_ids", "rejected_input_ids"), ("chosen", "rejected"))
_LOOKED_AT = {column for pair in _PAIRS for column in pair} | {PROMPT_TOKENS}


def columns_of(dataset: Dataset | IterableDataset, name: str) -> list[str]:
    """The columns of a data set, which must have a row."""
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(
            f"ImitationRewardTrainer: the {name} dataset is empty; expected preference pairs, with the columns "
            "'chosen' and 'rejected'."
        )
    return list(first)


def check_pairs(dataset: Dataset | IterableDataset, columns: list[str], name: str) -> Dataset | IterableDataset:
    """The same rows, of which each has two completions; of a stream, they are looked at as they come.

    Raises:
        ValueError: If a column is missing, or for the first row without a completion.
    """
    pair = next((pair for pair in _PAIRS if set(pair) <= set(columns)), None)
    if pair is None:
        raise ValueError(
            f"ImitationRewardTrainer: the {name} dataset has the columns {columns}; expected 'chosen' and 'rejected', "
            "with or without 'prompt', or 'chosen_ids' and 'rejected_ids'. Rename or add them."
        )
    dataset = dataset.with_format(None)  # lists, not tensors
    if isinstance(dataset, IterableDataset):
        return dataset.map(lambda row, index: _checked(row, index, pair, name), with_indices=True)
    for index, row in enumerate(dataset.select_columns([column for column in columns if column in _LOOKED_AT])):
        _checked(row, index, pair, name)
    return dataset


def _checked(row: dict, index: int, pair: tuple[str, str], name: str) -> dict:
    for column in pair:
        if not _has_completion(row[column]):
            raise ValueError(
                f"ImitationRewardTrainer: row {index} of the {name} dataset has no completion in column {column!r} "
                f"(got {row[column]!r}). Complete it, or drop such rows with `dataset.filter`."
            )
    if not 0 <= row.get(PROMPT_TOKENS, 0) < len(row[pair[0]]):
        raise ValueError(
            f"ImitationRewardTrainer: row {index} of the {name} dataset has {PROMPT_TOKENS}={row[PROMPT_TOKENS]}, which "
            f"leaves no completion of its {len(row[pair[0]])} tokens in column {pair[0]!r}. Count the tokens before "
            "the chosen completion, or leave the column out."
        )
    return row


def _has_completion(completion: str | list | None) -> bool:
    """Whether there is text, a token, or a last message that says or calls something."""
    if completion and isinstance(completion, list) and isinstance(completion[-1], Mapping):
        return bool(completion[-1].get("content") or completion[-1].get("tool_calls"))
    return bool(completion)


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
        for column in ("chosen_ids", "rejected_ids") if isinstance(dataset, Dataset) else ():
            check_ids(dataset[column], tokenizer, config, call=call)
