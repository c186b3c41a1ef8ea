"""Whether a row of a file is what it says: the types of its values, its token ids against its text, and its length."""

from dataclasses import dataclass
from typing import Any

from trl_ext.generation.completion_files import IDS
from trl_ext.generation.protocol import Policy
from trl_ext.sequences.samples import as_completion
from trl_ext.sequences.text_shapes import EXPECTED, Fault, fault_of, shown
from trl_ext.sequences.texts import Text, text_of
from trl_ext.sequences.token_ids import prompt_and_completion_ids
from trl_ext.sequences.vocabulary import unread_id

Row = dict[str, Any]
TYPES = {"ended": (bool, "true or false"), "generator": (str, "text"), "seed": (int, "a whole number")}
CORRECT = "Correct it, or leave it out"
DROP_IDS = "Drop the columns prompt_ids and completion_ids, or give the tokenizer that made them"


class WrongRow(Exception):
    """What is wrong with a row, and what to do."""


def in_form(prompt: Text, completion: Text) -> Text:
    """The completion as text for text, as messages for messages."""
    if isinstance(completion, str):
        return as_completion(prompt, completion)
    if isinstance(prompt, str):
        raise WrongRow(f"prompt {prompt!r} is text, but its completion is messages", "Give both as text or messages")
    return completion


@dataclass
class RowChecks:
    """The checks of a run.

    Args:
        policy: Whose tokens the ids must be.
        max_completion_length: In tokens.
    """

    policy: Policy
    max_completion_length: int

    def __post_init__(self):
        self.vocabulary = vocabulary_size(self.policy)

    def check(self, rows: list[Row]) -> None:
        """Raise WrongRow for the first row of a prompt that is not what it says."""
        for row in rows:
            check_types(row)
            check_shape(row)
            in_form(row["prompt"], row["completion"])
            self._check_vocabulary(row)
        self._check_texts([row for row in rows if row["prompt_ids"] is not None])

    def fits(self, row: Row) -> bool:
        """Whether a row's completion has at most `max_completion_length` tokens."""
        if row["completion_ids"] is not None:
            return len(row["completion_ids"]) <= self.max_completion_length
        if isinstance(row["prompt"], str):
            room = self.max_completion_length - self.policy.tokenizer.num_special_tokens_to_add() - 2
            if len(row["completion"].encode()) <= room:  # a token is at least a byte
                return True
        elif self.policy.tokenizer.chat_template is None:  # only text is asked of it, and nothing trained
            return True
        return len(self._tokenised(row)[1]) <= self.max_completion_length

    def _check_vocabulary(self, row: Row) -> None:
        for name in IDS:
            unread = unread_id(row[name] or [], self.vocabulary)
            if unread is not None:
                raise WrongRow(
                    f"a generator with another tokenizer: the {name} of prompt {shown(row['prompt'])} have the id "
                    f"{unread}, and the policy's vocabulary has {self.vocabulary}",
                    DROP_IDS,
                )

    def _check_texts(self, rows: list[Row]) -> None:
        """Raise unless ids are the text's, either as they decode or as the policy's tokenizer reads the text."""
        sampled = [row for row in rows if row["completion_ids"] is not None]
        prompts, ids = [row["prompt"] for row in sampled], [row["completion_ids"] for row in sampled]
        decoded = iter(self.policy.completion_texts(prompts, ids) if sampled else ())
        prompt_ids = self.policy.prompt_ids(rows[0]["prompt"]) if rows else None
        for row in rows:
            text = text_of(row["completion"])
            read = text if row["completion_ids"] is None else text_of(next(decoded))
            same_text = read.strip() == text.strip()
            if not (same_text and row["prompt_ids"] == prompt_ids) and not self._is_tokenised(row):
                what = f"the prompt_ids of {shown(row['prompt'])} are not what the policy reads"
                if not same_text:
                    what = f"the ids of {text[:80]!r} are {read[:80]!r} to the policy"
                raise WrongRow(f"a generator with another tokenizer: {what}", DROP_IDS)

    def _is_tokenised(self, row: Row) -> bool:
        return self._tokenised(row) == (row["prompt_ids"], row["completion_ids"])

    def _tokenised(self, row: Row) -> tuple[list[int], list[int]]:
        return prompt_and_completion_ids(
            row["prompt"],
            in_form(row["prompt"], row["completion"]),
            self.policy.tokenizer,
            self.policy.chat_template_kwargs,
            ended=row["ended"] is not False,
        )


def check_types(row: Row) -> None:
    """Raise WrongRow for values of a wrong type, and for a completion's ids without its prompt's."""
    where = f"of prompt {shown(row['prompt'])}"
    for name, (kind, expected) in TYPES.items():
        if row[name] is not None and type(row[name]) is not kind:
            raise WrongRow(f"`{name}` {where} is {row[name]!r}, expected {expected}", CORRECT)
    for name in IDS:
        ids = row[name]
        if ids is not None and not (isinstance(ids, list) and ids and all(type(i) is int for i in ids)):
            raise WrongRow(f"`{name}` {where} are {shown(ids)}, expected a list of whole numbers", CORRECT)
    if row["completion_ids"] is not None and row["prompt_ids"] is None:
        raise WrongRow(
            f"the completion {where} has completion_ids without prompt_ids, and they are one sequence",
            "Give both, or drop the column completion_ids",
        )


def check_shape(row: Row) -> None:
    """Raise WrongRow for a completion that is neither text nor messages, some of which are the assistant's."""
    completion = row["completion"]
    if isinstance(completion, str):
        return
    fault = fault_of(completion, may_be_empty=True)
    if fault is None and all(m["role"] != "assistant" for m in completion):
        fault = Fault("and none of these is the assistant's", "Give what the assistant answers")
    if fault is not None:
        where = f"the completion of prompt {shown(row['prompt'])} is {shown(completion)}"
        remedy = fault.remedy_for("completion").removesuffix(".")
        raise WrongRow(f"{where}: expected {EXPECTED}, {fault.what}", remedy)


def vocabulary_size(policy: Policy) -> int:
    """How many ids the policy can read; without a model, how many its tokenizer has."""
    if policy.model is not None:
        return policy.model.get_input_embeddings().weight.size(0)
    return max(policy.tokenizer.get_vocab().values()) + 1
