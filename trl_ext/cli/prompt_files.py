"""Files of prompts, as people have them."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from pyarrow import csv

from trl_ext.self_training.self_training_input import check_dataset


def read_prompts(path: Path, column: str) -> Dataset:
    """The rows of a .jsonl, .json, .csv or .parquet file, with the prompts in the column `prompt`.

    Args:
        path: The file; a .json file holds one list of objects.
        column: Where it has the prompts, text or messages.

    Raises:
        ValueError: If it is missing, damaged, without rows or without the column, or a prompt is empty.
    """
    call = f"--prompts {path}"
    if not path.is_file():
        raise ValueError(f"{call}: there is no such file. Give the path of a {', '.join(READERS)} file.")
    if path.suffix not in READERS:
        raise ValueError(f"{call}: expected a file that ends in {', '.join(READERS)}. Convert it to one of these.")
    try:
        dataset = Dataset.from_dict(READERS[path.suffix](path, column))
    except (ValueError, OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{call}: it cannot be read ({reason}). It is damaged or not what its name says.") from error
    if not len(dataset):
        raise ValueError(f"{call}: it has no rows. Give at least one prompt.")
    dataset = _with_prompts(dataset, column, call=call)
    check_dataset(dataset, trainer="trl-ext generate", name="--prompts")
    return dataset


def _with_prompts(dataset: Dataset, column: str, *, call: str) -> Dataset:
    if column not in dataset.column_names:
        raise ValueError(
            f"{call}: it has the columns {dataset.column_names}, and no column {column!r}. Name the one with the "
            "prompts by --prompt-column."
        )
    if column == "prompt":
        return dataset
    if "prompt" in dataset.column_names:
        raise ValueError(f"{call}, --prompt-column {column}: it has a column 'prompt' too. Drop or rename that one.")
    return dataset.rename_column(column, "prompt")


def _read_jsonl(path: Path, column: str) -> dict[str, list]:
    with path.open(encoding="utf-8") as lines:
        return _columns([json.loads(line) for line in lines if line.strip()])


def _read_json(path: Path, column: str) -> dict[str, list]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError("expected a list of objects")
    return _columns(rows)


def _columns(rows: list[dict]) -> dict[str, list]:
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected each row to be an object")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _read_csv(path: Path, column: str) -> dict[str, list]:
    """Prompts stay text, also those that look like numbers or like "NA"."""
    if not path.stat().st_size:
        return {}
    return csv.read_csv(
        path,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types={column: pa.string()}, strings_can_be_null=False),
    ).to_pydict()


def _read_parquet(path: Path, column: str) -> dict[str, list]:
    return pq.ParquetFile(path).read().to_pydict()


READERS: dict[str, Callable[[Path, str], dict[str, list]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
