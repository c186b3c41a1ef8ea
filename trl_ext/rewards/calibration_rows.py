"""The rows that a calibration looks at: prompts that differ, with their references and perhaps answers to them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset

from trl_ext.sequences.prompt_rows import as_dataset, check_completions, check_prompts, lacks_prompts, one_split
from trl_ext.sequences.query_type_column import check_query_types
from trl_ext.sequences.texts import last_user_texts, text_of
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import Rule

CALL = "calibrate_relevance(dataset)"
FEWEST = 50  # rows, of which an accuracy is known within 0.07


@dataclass(frozen=True)
class Rows:
    """N texts each.

    Attributes:
        prompts, references, answers: x, y and ŷ; the answers are the references where no completions are given.
        given: Whether completions are.
        closed: Places of the rows that r_y is of.
    """

    prompts: list[str]
    references: list[str]
    answers: list[str]
    given: bool
    closed: list[int]


def read_rows(dataset: Dataset | Sequence[dict], *, most: int, seed: int) -> Rows:
    """Those that have all that is needed and of each prompt the first, at most so many of them, drawn by the seed."""
    most = checked("calibrate_relevance", "rows", most, int, Rule(low=FEWEST))
    one_split(dataset, call=CALL)
    columns = _columns(dataset)
    prompts, count = columns["prompt"], len(columns["prompt"])
    check_prompts(prompts, call=CALL, may_be_empty=True)
    if given := "completion" in columns:
        check_completions(prompts, columns["completion"], call=CALL, may_be_missing=True)
    _check_references(columns["reference"])
    check_query_types(types := columns.get("query_type") or [None] * count, call=CALL)
    asked, references = last_user_texts(prompts, range(count)), [text or "" for text in columns["reference"]]
    answers = [text_of(text or "") for text in columns["completion"]] if given else references
    whole = [i for i in range(count) if asked[i].strip() and references[i].strip() and answers[i].strip()]
    places = list({asked[i]: i for i in reversed(whole)}.values())[::-1]
    _check_count(len(places), whole=len(whole), count=count, given=given)
    places = sorted(random.Random(seed).sample(places, min(most, len(places))))
    closed = [place for place, i in enumerate(places) if types[i] == "closed"]
    texts = [[column[i] for i in places] for column in (asked, references, answers)]
    return Rows(*texts, given=given, closed=closed if len(closed) >= FEWEST else list(range(len(places))))


def _columns(dataset: Dataset | Sequence[dict]) -> dict[str, list]:
    rows = as_dataset(dataset if isinstance(dataset, Dataset) else list(dataset), call=CALL)
    if "prompt" not in rows.column_names:
        raise lacks_prompts(rows.column_names, call=CALL)
    if "reference" not in rows.column_names:
        raise ValueError(
            f"{CALL} has columns {rows.column_names}: expected a column `reference` with the right answers, or what "
            "relevance is worth cannot be known. Add it; rows without an answer may have None."
        )
    read = [name for name in ("prompt", "reference", "completion", "query_type") if name in rows.column_names]
    return {name: rows.with_format(None)[name][:] for name in read}


def _check_references(references: list) -> None:
    for row, text in enumerate(references):
        if not isinstance(text, str | None):
            raise ValueError(
                f"{CALL}: expected a text in the column `reference`, got {text!r} in row {row}. Make it a text, or None."
            )


def _check_count(found: int, *, whole: int, count: int, given: bool) -> None:
    if found < FEWEST:
        answer = " and a completion" if given else ""
        raise ValueError(
            f"{CALL}: expected at least {FEWEST} rows with a reference{answer} whose prompts differ, got {found}: of "
            f"{count} rows {count - whole} lack one or are empty, and {whole - found} repeat a prompt. Give more rows; a "
            "few dozen tell too little of an encoder."
        )
