"""Files of rows, read as they were written."""

import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from pyarrow import csv

from trl_ext.trainer_kit.whole_text import with_whole_text

READERS = (".jsonl", ".json", ".csv", ".parquet")  # names that `read_rows` reads end so
UNREADABLE = (ValueError, OSError, OverflowError, pa.ArrowException)  # what reading a damaged file may raise


class MixedColumn(ValueError):
    """Which column holds values of different kinds, and where."""


def read_rows(
    path: Path,
    text: Collection[str] = (),
    convert: Mapping[str, Callable] | None = None,
    needed: Collection[str] | None = None,
) -> Dataset:
    """All rows of a .jsonl, .json, .csv or .parquet file; None where a row lacks a value.

    Args:
        path: The file; a .json file holds one list of objects.
        text: Columns that are text, also where all of a .csv file's rows look like numbers.
        convert: What is made of each value of a column of JSON before it becomes a table's, which has one type.
        needed: Columns of JSON that must be of one kind; another that is not is left out, with a warning. None: all.
    """
    if path.suffix == ".csv":
        return _from_csv(path, text)
    return _from_parquet(path) if path.suffix == ".parquet" else _from_json(path, convert or {}, needed)


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .json file's list, or of a JSONL file's lines one at a time; empty lines are passed over.

    Not by Dataset.from_json, which makes datetimes of text that looks like dates, and floats of large whole numbers.
    """
    with path.open(encoding="utf-8-sig") as file:  # some editors begin a file with a byte order mark
        for place, row in _of_list(file) if path.suffix == ".json" else _of_lines(file):
            if not isinstance(row, dict):
                raise ValueError(f"expected each row to be an object: {place}")
            yield with_whole_text(row)


def _of_list(file: TextIO) -> Iterator[tuple[str, Any]]:
    rows = json.load(file)
    if not isinstance(rows, list):
        raise ValueError("expected a list of objects")
    return ((f"row {number}", row) for number, row in enumerate(rows))


def _of_lines(file: TextIO) -> Iterator[tuple[str, Any]]:
    """An error names the line of the file, empty ones counted."""
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{error.msg}: line {number} column {error.colno}") from error


def _from_json(path: Path, convert: Mapping[str, Callable], needed: Collection[str] | None) -> Dataset:
    """Not by Dataset.from_list, which takes the columns of the first row only."""
    rows = list(json_rows(path))
    names = dict.fromkeys(name for row in rows for name in row)
    rows = [row | {name: read(row.get(name)) for name, read in convert.items() if name in row} for row in rows]
    columns = {name: [row.get(name) for row in rows] for name in names}
    for name in [] if needed is None else [name for name in names if name not in needed]:
        try:
            _check_one_kind(name, columns[name], 0)
        except MixedColumn as error:
            warnings.warn(f"{path}: {error}, and is left out. A reward that reads it needs one kind.", stacklevel=2)
            del columns[name]
    with mixtures_named(columns):
        return Dataset.from_dict(columns)


@contextmanager
def mixtures_named(columns: Mapping[str, list], *, first: int = 0) -> Iterator[None]:
    """Where no table can be made of some columns, of rows from `first` on, raise a MixedColumn that says why."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        for name, values in columns.items():
            _check_one_kind(name, values, first)
        raise


def _check_one_kind(name: str, values: list, first: int) -> None:
    try:
        pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        kinds = {type(value): row for row, value in reversed(list(enumerate(values))) if value is not None}
        rows = [
            f"{kind.__name__} in row {first + row}" for kind, row in sorted(kinds.items(), key=lambda item: item[1])
        ]
        what = ", ".join(rows) if len(rows) > 1 else str(error).splitlines()[0]
        raise MixedColumn(f"its column {name!r} holds values of different kinds ({what})") from error


def _from_csv(path: Path, text: Collection[str]) -> Dataset:
    """Not by Dataset.from_csv, which makes None of "NA", and floats of whole numbers beside an empty cell."""
    if not path.stat().st_size:
        return Dataset.from_dict({})
    layout = csv.ParseOptions(newlines_in_values=True)
    types = csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string()), strings_can_be_null=False)
    return Dataset(csv.read_csv(path, parse_options=layout, convert_options=types))


def _from_parquet(path: Path) -> Dataset:
    return Dataset(pq.ParquetFile(path).read())
