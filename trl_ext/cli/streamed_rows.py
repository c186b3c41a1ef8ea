"""Rows that are read as they come, rather than all before the run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Features, IterableDataset

from trl_ext.sequences.text_shapes import with_text
from trl_ext.trainer_kit.row_files import UNREADABLE, json_rows

STREAMED = (".jsonl", ".parquet")  # files that are read a piece at a time
AT_ONCE = 1000  # rows of a .parquet file


def streamed_file(path: Path, texts: Sequence[str], columns: Mapping[str, str], *, call: str) -> IterableDataset:
    """The rows of a file, as `read_file` and `renamed` read them; a ValueError where there is none.

    Args:
        path: The file.
        texts: Its columns that hold text or messages.
        columns: Old names of columns by new ones.
        call: Who asks, for messages.
    """
    if not path.is_file():
        raise ValueError(f"{call}: there is no such file. Give the path of a {' or '.join(STREAMED)} file.")
    if path.suffix not in STREAMED:
        raise ValueError(
            f"{call} with --dataset_streaming: a {path.suffix} file is read whole. Convert it to {' or '.join(STREAMED)}, or "
            "leave --dataset_streaming out."
        )
    features = _features(path, call) if path.suffix == ".parquet" else None
    new = {old: name for name, old in columns.items()}
    if features is not None:
        features = Features({new.get(name, name): kind for name, kind in features.items()})
    # A list among them would be taken for shards.
    given = {"path": str(path), "texts": tuple(texts), "new": new, "call": call}
    return IterableDataset.from_generator(_rows, features=features, gen_kwargs=given)


def first_row(rows: IterableDataset, *, call: str) -> dict[str, Any]:
    """The first row of a stream; a ValueError for one that has none."""
    first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"{call}: it has no rows. Give at least one.")
    return first


def _rows(path: str, texts: tuple[str, ...], new: dict[str, str], call: str) -> Iterator[dict[str, Any]]:
    try:
        for row in (_of_parquet if path.endswith(".parquet") else json_rows)(Path(path)):
            row = row | {name: with_text(row[name]) for name in texts if name in row}
            yield {new.get(name, name): value for name, value in row.items()}
    except UNREADABLE as error:
        raise _unreadable(error, call) from error


def _of_parquet(path: Path) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(path).iter_batches(AT_ONCE):
        yield from batch.to_pylist()


def _features(path: Path, call: str) -> Features:
    try:
        return Features.from_arrow_schema(pq.read_schema(path))
    except UNREADABLE as error:
        raise _unreadable(error, call) from error


def _unreadable(error: Exception, call: str) -> ValueError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"{call}: it cannot be read ({reason}). It is damaged or not what its name says.")
