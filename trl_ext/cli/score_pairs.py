"""Pairs of the best and the worst completion of each prompt, of a file with scores."""

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from trl_ext.cli.row_output import check_rows_output, write_rows
from trl_ext.cli.score_rows import SCORE
from trl_ext.generation.completion_files import key_of
from trl_ext.trainer_kit.row_files import UNREADABLE


class Ends(NamedTuple):
    """Of one prompt: the best and the worst completion so far, each with its score."""

    prompt: Any
    best: tuple[float, Any]
    worst: tuple[float, Any]


def write_pairs(source: Path, output: Path, prompt_column: str, completion_column: str) -> str:
    """Write `prompt`, `chosen`, `rejected`, `score_chosen` and `score_rejected`; returns a line of what was written.

    A prompt whose completions all have one score, or no score, has no pair.

    Raises:
        ValueError: Where the file has no scores, where no prompt has a pair, or where something else is at `output`.
    """
    call = f"--pairs_output {output}"
    ends = best_and_worst(source, prompt_column, completion_column)
    pairs = [
        {
            "prompt": one.prompt,
            "chosen": one.best[1],
            "rejected": one.worst[1],
            "score_chosen": one.best[0],
            "score_rejected": one.worst[0],
        }
        for one in ends.values()
        if one.best[0] > one.worst[0] and one.best[1] != one.worst[1]
    ]
    if not pairs:
        raise ValueError(
            f"{call}: none of {len(ends)} prompts has two completions of different scores, so there is no pair."
        )
    said = f"{output}: {len(pairs)} pairs of {len(ends)} prompts with a score"
    return f"Complete already. {said}" if write_rows(output, pairs, call=call) else said


def check_pairs_output(output: Path) -> None:
    """Raise a ValueError for a place where no pairs can be written; asked before anything is scored."""
    check_rows_output(output, call=f"--pairs_output {output}")


def best_and_worst(source: Path, prompt_column: str, completion_column: str) -> dict[str, Ends]:
    """Of each prompt that has a score, by what is equal for equal prompts."""
    try:
        file = pq.ParquetFile(source)
        names = file.schema_arrow.names
        if SCORE not in names:
            raise ValueError(f"--samples {source}: it has no column {SCORE!r}. Give --reward_funcs, and --output.")
        missing = [name for name in (prompt_column, completion_column) if name not in names]
        if missing:
            raise ValueError(f"--samples {source}: it has the columns {names}, and no {missing[0]!r}.")
        ends: dict[str, Ends] = {}
        for batch in file.iter_batches(columns=[prompt_column, completion_column, SCORE]):
            for row in batch.to_pylist():
                if row[SCORE] is not None:
                    _add(ends, row[prompt_column], (row[SCORE], row[completion_column]))
    except UNREADABLE as error:
        if isinstance(error, ValueError) and not isinstance(error, pa.ArrowException):
            raise
        raise ValueError(
            f"--samples {source}: it cannot be read as parquet ({str(error).splitlines()[0]})."
        ) from error
    return ends


def _add(ends: dict[str, Ends], prompt: Any, found: tuple[float, Any]) -> None:
    key = key_of(prompt)
    before = ends.get(key, Ends(prompt, found, found))
    best = found if found[0] > before.best[0] else before.best
    worst = found if found[0] < before.worst[0] else before.worst
    ends[key] = Ends(before.prompt, best, worst)
