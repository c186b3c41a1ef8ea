"""Files of rows, read as they were written."""

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from pyarrow import csv

UNREADABLE = (ValueError, OSError, OverflowError, pa.ArrowException)  # what reading a damaged file may raise


def read_rows(path: Path, text: Collection[str] = ()) -> Dataset:
    """All rows of a .jsonl, .json, .csv or .parquet file; None where a row lacks a value.

    Args:
        path: The file; a .json file holds one list of objects.
        text: Columns that are text, also where all of a .csv file's rows look like numbers.
    """
    return READERS[path.suffix](path, text)


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .json file's list, or of a JSONL file's lines one at a time; empty lines are passed over.

    Not by Dataset.from_json, which makes datetimes of text that looks like dates, and floats of large whole numbers.
    """
    with path.open(encoding="utf-8-sig") as file:  # some editors begin a file with a byte order mark
        rows = json.load(file) if path.suffix == ".json" else map(json.loads, filter(str.strip, file))
        if not isinstance(rows, list | map):
            raise ValueError("expected a list of objects")
        for row in rows:
            if not isinstance(row, dict):
                raise ValueError("expected each row to be an object")
            yield row


def _from_json(path: Path, text: Collection[str]) -> Dataset:
    """Not by Dataset.from_list, which takes the columns of the first row only."""
    rows = list(json_rows(path))
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


def _from_csv(path: Path, text: Collection[str]) -> Dataset:
    """Not by Dataset.from_csv, which makes None of "NA", and floats of whole numbers beside an empty cell."""
    if not path.stat().st_size:
        return Dataset.from_dict({})
    layout = csv.ParseOptions(newlines_in_values=True)
    types = csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string()), strings_can_be_null=False)
    return Dataset(csv.read_csv(path, parse_options=layout, convert_options=types))


def _from_parquet(path: Path, text: Collection[str]) -> Dataset:
    return Dataset(pq.ParquetFile(path).read())


READERS: dict[str, Callable[[Path, Collection[str]], Dataset]] = {
    ".jsonl": _from_json,
    ".json": _from_json,
    ".csv": _from_csv,
    ".parquet": _from_parquet,
}
