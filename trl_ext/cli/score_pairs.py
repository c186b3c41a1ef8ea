"""Pairs of the best and the worst completion of each prompt, of a file with scores."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from trl_ext.cli.score_rows import SCORE
from trl_ext.generation.completion_files import key_of
from trl_ext.generation.sample_files import write_table
from trl_ext.trainer_kit.own_folders import check_is_folder
from trl_ext.trainer_kit.row_files import UNREADABLE
from trl_ext.trainer_kit.whole_files import written_whole


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
    if output.exists():
        if not _holds(output, pairs):
            raise ValueError(f"{call}: there is a file of that name with something else. Give another, or remove it.")
        return f"Complete already. {said}"
    if output.suffix == ".parquet":
        write_table(output, pa.Table.from_pylist(pairs))
    else:
        with written_whole(output) as partial:
            partial.write_text(_as_lines(pairs), encoding="utf-8")
    return said


def check_pairs_output(output: Path) -> None:
    """Raise a ValueError for a place where no pairs can be written; asked before anything is scored."""
    call = f"--pairs_output {output}"
    if output.suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"{call}: expected a name that ends in .parquet or .jsonl.")
    check_is_folder(output.parent, call=call)


def _holds(output: Path, pairs: list[dict[str, Any]]) -> bool:
    """Whether a file holds these pairs, as of the same command given again."""
    try:
        if output.suffix == ".parquet":
            return pq.read_table(output).equals(pa.Table.from_pylist(pairs))
        return output.read_text(encoding="utf-8") == _as_lines(pairs)
    except UNREADABLE:
        return False


def _as_lines(pairs: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)


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
