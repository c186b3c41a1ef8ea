"""What all prompts of a data set are seen to be in one pass over them, so that later checks need not read them again."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.sequences.text_shapes import with_text
from trl_ext.sequences.texts import Text
from trl_ext.sequences.token_ids import TemplateKwargs, many_prompt_ids, prompt_ids
from trl_ext.sequences.tokenizers import reading_fingerprint
from trl_ext.trainer_kit.kept_facts import batches, kept

LOOKED_AT = 32  # of the longest prompts by letters


@dataclass
class PromptFacts:
    """Of prompts that are prompts.

    Args:
        answered: Rows that end with what the assistant says.
        first_answered: The first of them; None where there is none.
        in_parts: Whether the content of some messages is parts of text.
        longest: Bytes of the longest text; 0 of messages.
        asks: By the role of messages' last one, the first row that ends so.
    """

    answered: int = 0
    first_answered: int | None = None
    in_parts: bool = False
    longest: int = 0
    asks: dict[str, int] = field(default_factory=dict)

    def note(self, row: int, prompt: Text) -> None:
        if isinstance(prompt, str):
            self.longest = max(self.longest, len(prompt.encode()))
            return
        role = prompt[-1]["role"]
        self.asks.setdefault(role, row)
        self.in_parts = self.in_parts or with_text(prompt) is not prompt
        if role == "assistant":
            self.first_answered = row if self.first_answered is None else self.first_answered
            self.answered += 1

    def noted(self, prompts: Iterable[Any]) -> Iterator[Any]:
        """The prompts, each of which is taken down when the next one is asked for: by then it was looked at."""
        for row, prompt in enumerate(prompts):
            yield prompt
            self.note(row, prompt)


def column_values(dataset: Dataset, column: str) -> Iterator[Any]:
    """A column as it is stored, some rows in memory at a time."""
    for batch in batches(dataset, [column]):
        yield from batch[column]


def token_facts(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, template_kwargs: TemplateKwargs
) -> dict[str, int]:
    """`longest`, the tokens of the longest prompt, and the `highest` id; a ValueError for a prompt that becomes none."""

    def find() -> dict[str, int]:
        longest = highest = 0
        for batch in _prompts(dataset):
            for ids in many_prompt_ids(batch, tokenizer, template_kwargs):
                longest, highest = max(longest, len(ids)), max([highest, *ids])
        return {"longest": longest, "highest": highest}

    return kept(dataset, "tokens", find, columns=["prompt"], by=reading_of(tokenizer, template_kwargs))


def longest_prompt_ids(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, template_kwargs: TemplateKwargs = None
) -> int:
    """Tokens of the longest prompt, looked for among those of the most letters."""

    def find() -> int:
        told = (prompt for batch in _prompts(dataset) for prompt in batch)
        prompts = ((len(str(prompt)), row, prompt) for row, prompt in enumerate(told))
        longest = heapq.nlargest(LOOKED_AT, prompts, key=lambda one: one[:2])
        return max(len(prompt_ids(prompt, tokenizer, template_kwargs)) for *_, prompt in longest)

    return kept(dataset, "longest prompt", find, columns=["prompt"], by=reading_of(tokenizer, template_kwargs))


def _prompts(dataset: Dataset) -> Iterator[list[Text]]:
    """In the data set's own format, some at a time; a function of one's own may read further columns."""
    rows = dataset if dataset.format["type"] == "custom" else dataset.select_columns("prompt")
    for batch in rows.iter(100):
        yield list(batch["prompt"])


def reading_of(tokenizer: PreTrainedTokenizerBase, template_kwargs: TemplateKwargs) -> list | None:
    """What decides which tokens a prompt becomes, for what is kept of them."""
    read = reading_fingerprint(tokenizer)
    return None if read is None else [read, template_kwargs or {}]
