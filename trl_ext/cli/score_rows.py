"""The rows that `trl-ext score` reads, a part at a time, and what it adds to them."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trl_ext.cli.prompt_files import read_file
from trl_ext.cli.score_prompts import PromptColumns
from trl_ext.rewards.reward_columns import check_columns
from trl_ext.rewards.weighted_rewards import Scorer
from trl_ext.sequences.prompt_rows import check_completions, check_prompts
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.text_shapes import with_text
from trl_ext.trainer_kit.row_files import UNREADABLE, json_rows

SCORE, SCORE_BEFORE, REWARD = "score", "score_before", "reward/"
OF_SAMPLES = (
    "row",
    "sample",
    "prompt_ids",
    "completion_ids",
    "ended",
    "generator",
    "seed",
    "duplicate",
    "key",
    "kept",
)


@dataclass(frozen=True)
class Columns:
    """Names of the two columns that are scored."""

    prompt: str
    completion: str


def table_schema(path: Path, columns: Columns, *, size: int) -> tuple[pa.Schema, int]:
    """The columns of all of a file's rows, and in how many parts it is read.

    Raises:
        ValueError: Where it is missing, damaged or empty, or lacks prompts or completions.
    """
    call = f"--samples {path}"
    if not path.is_file():
        raise ValueError(f"{call}: there is no such file. Give a .parquet, .jsonl, .json or .csv file.")
    try:
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            schema, rows = file.schema_arrow, file.metadata.num_rows
        else:
            schemas, rows = [], 0
            for table in _tables(path, columns, size):
                schemas.append(table.schema)
                rows += len(table)
            schema = pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])
    except UNREADABLE as error:
        raise ValueError(
            f"{call}: it cannot be read ({str(error).splitlines()[0]}). It is damaged or of mixed kinds."
        ) from error
    for flag, name in (("--prompt_column", columns.prompt), ("--completion_column", columns.completion)):
        if rows and name not in schema.names:
            raise ValueError(f"{call}: it has the columns {schema.names}, and no {name!r}. Name it by {flag}.")
    if not rows:
        raise ValueError(f"{call}: it has no rows. Give at least one.")
    return schema.remove_metadata(), -(-rows // size)


def row_parts(path: Path, schema: pa.Schema, columns: Columns, *, size: int) -> Iterator[pa.Table]:
    """The file's rows in tables of `size`, the last one smaller; never more than one of them in memory."""
    for table in _tables(path, columns, size):
        missing = [name for name in schema.names if name not in table.column_names]
        for name in missing:
            table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
        yield table.select(schema.names).cast(schema)


def _tables(path: Path, columns: Columns, size: int) -> Iterator[pa.Table]:
    if path.suffix == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches(size):
            yield pa.Table.from_batches([batch]).replace_schema_metadata(None)
    elif path.suffix == ".jsonl":
        rows = json_rows(path)
        while part := list(islice(rows, size)):
            names = dict.fromkeys(name for row in part for name in row)
            yield pa.table({name: [_read(row.get(name), name, columns) for row in part] for name in names})
    else:
        table = read_file(path, [columns.prompt, columns.completion], call=f"--samples {path}").data.table
        for at in range(0, len(table), size):
            yield table.slice(at, size).replace_schema_metadata(None)


def _read(value, name: str, columns: Columns):
    return with_text(value) if name in (columns.prompt, columns.completion) else value


def scored(
    table: pa.Table, scorer: Scorer, columns: Columns, of_prompts: PromptColumns | None = None, *, part: int
) -> pa.Table:
    """The rows with a column per reward and the weighted score; what was there before keeps another name.

    Rewards also get the columns `of_prompts`.

    Raises:
        ValueError: For what is no prompt or completion, or a column that a reward lacks.
    """
    rows = table.to_pylist()
    prompts, completions = (_texts(rows, name) for name in (columns.prompt, columns.completion))
    others = checked_columns(table, rows, scorer.rewards, columns, of_prompts, part=part)
    samples = [
        Sample(
            row=row.get("row", i),
            sample=row.get("sample", 0),
            prompt=prompt,
            completion=completion,
            prompt_ids=row.get("prompt_ids"),
            completion_ids=row.get("completion_ids"),
            ended=row.get("ended", True) is not False,
            generator=row.get("generator") or "file",
            seed=-1,
        )
        for i, (row, prompt, completion) in enumerate(zip(rows, prompts, completions, strict=True))
    ]
    return _with_scores(table, scorer.columns(samples, others, part=part))


def checked_columns(
    table: pa.Table,
    rows: list[dict[str, Any]],
    rewards: Iterable[Callable],
    columns: Columns,
    of_prompts: PromptColumns | None,
    *,
    part: int,
) -> dict[str, list]:
    """What rewards get of a table's rows beside prompts and completions; a ValueError for what they cannot read."""
    prompts, completions = (_texts(rows, name) for name in (columns.prompt, columns.completion))
    call = f"--samples, part {part}"
    check_prompts(prompts, call=call, column=columns.prompt, may_be_empty=True)
    check_completions(prompts, completions, call=call, column=columns.completion)
    others = {name: [row[name] for row in rows] for name in table.column_names if _reaches_rewards(name, columns)}
    if of_prompts is not None:
        others = of_prompts.beside(others, prompts, [row.get("row") for row in rows])
    _check_columns(rewards, others, table.column_names, has_prompts=of_prompts is not None)
    return others


def _texts(rows: list[dict[str, Any]], name: str) -> list:
    return [with_text(row[name]) for row in rows]


def _check_columns(
    rewards: Iterable[Callable], others: dict[str, list], names: list[str], *, has_prompts: bool
) -> None:
    """Raise a ValueError for a column that a reward lacks, with those that the file has, and where more may come from."""
    count = len(next(iter(others.values()), [None]))
    more = "" if has_prompts else " Columns of the prompts that they were made from are read by --prompts FILE."
    try:
        for reward in rewards:
            check_columns(reward, others, range(count))
    except ValueError as error:
        raise ValueError(f"--samples, which has {names}: {error}{more}") from error


def _reaches_rewards(name: str, columns: Columns) -> bool:
    hidden = (columns.prompt, columns.completion, SCORE, SCORE_BEFORE, *OF_SAMPLES)
    return name not in hidden and not name.startswith((REWARD, SCORE_BEFORE))


def _with_scores(table: pa.Table, scores: dict[str, list]) -> pa.Table:
    if SCORE in table.column_names:
        kept = free_name(SCORE_BEFORE, table.column_names)
        table = table.rename_columns([kept if name == SCORE else name for name in table.column_names])
    for name, values in scores.items():
        table = table.append_column(free_name(name, table.column_names), pa.array(values, pa.float64()))
    return table


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, with the first number that is free where there is one like it.

    >>> free_name("a", ["a", "a_2"])
    'a_3'
    """
    names = chain([name], (f"{name}_{number}" for number in count(2)))
    return next(each for each in names if each not in taken)


def file_fingerprint(path: Path) -> str:
    """Of its bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
