"""Rows that have a prompt and two completions, as pairs."""

from typing import Any, NamedTuple

from datasets import Dataset

from trl_ext.ai_feedback.preference_questions import Question, conversation_text
from trl_ext.sequences.preference_rows import SIDES, check_complete, pair_prompt, preference_row
from trl_ext.sequences.prompt_rows import as_dataset
from trl_ext.sequences.texts import Text, text_of

COMPLETIONS = ("completion_1", "completion_2")
PROBABILITY = "chosen_probability"


class Pair(NamedTuple):
    """A row's prompt and completions.

    Args:
        row: Its number.
        prompt, first, second: Text or messages.
        given: P(the first is better), where the row says it.
    """

    row: int
    prompt: Text
    first: Text
    second: Text
    given: float | None

    @property
    def question(self) -> Question:
        return Question(conversation_text(self.prompt), (text_of(self.first), text_of(self.second)))

    @property
    def is_equal(self) -> bool:
        first, second = self.question.completions
        return first == second

    def labelled(self, probability: float) -> dict[str, Any]:
        """As trainers read it: the likelier one is chosen; at ½ the first."""
        is_first = probability >= 0.5
        chosen, rejected = (self.first, self.second) if is_first else (self.second, self.first)
        likelier = probability if is_first else 1 - probability
        return {"prompt": self.prompt, "chosen": chosen, "rejected": rejected, PROBABILITY: likelier}


def preference_pairs(dataset: Dataset | list[dict], *, call: str) -> list[Pair]:
    """Of rows with `completion_1` and `completion_2`, or with `chosen` and `rejected`, which say what is given.

    Raises:
        ValueError: For a data set without such columns, or its first row whose values are none, or empty.
    """
    dataset = as_dataset(dataset, call=call).with_format(None)
    names = next((pair for pair in (COMPLETIONS, SIDES) if {*pair} <= {*dataset.column_names}), None)
    if names is None:
        raise ValueError(
            f"{call}: the data set has the columns {dataset.column_names}: expected `prompt` and two completions, as "
            "`completion_1` and `completion_2`, or as `chosen` and `rejected`. Rename them: dataset.rename_columns({…}); of "
            "samples, several rows a prompt with one `completion` each, make pairs: trl_ext.ai_feedback.sample_pairs(dataset)."
        )
    if not len(dataset):
        raise ValueError(f"{call}: the data set has no rows. Give at least one pair.")
    return [_pair(number, row, names, call) for number, row in enumerate(dataset)]


def _pair(number: int, row: dict[str, Any], names: tuple[str, str], call: str) -> Pair:
    where = f"{call}: row {number}"
    check_complete(row, names, where)
    own = {name: value for name, value in row.items() if name not in SIDES} | {
        side: row[name] for side, name in zip(SIDES, names, strict=True)
    }
    try:
        read = preference_row(own)
        prompt, first, second = pair_prompt(read)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for name, text in zip(names, map(text_of, (first, second)), strict=True):
        if not text.strip():
            raise ValueError(
                f"{where} has no text in column {name!r} (got {row[name]!r}), and text is all that a labeler reads. Complete it, "
                "or drop such rows with `dataset.filter`."
            )
    return Pair(number, prompt, first, second, _given(row, where) if names == SIDES else None)


def _given(row: dict[str, Any], where: str) -> float:
    value = row.get(PROBABILITY, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(
            f"{where} has {PROBABILITY}={value!r}: expected a number from 0 to 1. Correct it, or leave the column out."
        )
    return float(value)
