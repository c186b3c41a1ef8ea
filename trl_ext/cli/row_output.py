"""Rows that a command writes at its end, as .parquet or .jsonl."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trl_ext.generation.sample_files import write_table
from trl_ext.trainer_kit.own_folders import check_is_folder
from trl_ext.trainer_kit.row_files import UNREADABLE
from trl_ext.trainer_kit.whole_files import written_whole


def check_rows_output(output: Path, *, call: str) -> None:
    """Raise a ValueError for a place where no rows can be written; asked before anything is done."""
    if output.suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"{call}: expected a name that ends in .parquet or .jsonl.")
    check_is_folder(output.parent, call=call)


def write_rows(output: Path, rows: list[dict[str, Any]], *, call: str) -> bool:
    """Write them, whole or not at all; whether they were there already, as of the same command given again.

    Raises:
        ValueError: Where something else is at `output`.
    """
    if output.exists():
        if not _holds(output, rows):
            raise ValueError(f"{call}: there is a file of that name with something else. Give another, or remove it.")
        return True
    if output.suffix == ".parquet":
        write_table(output, pa.Table.from_pylist(rows))
    else:
        with written_whole(output) as partial:
            partial.write_text(_as_lines(rows), encoding="utf-8")
    return False


def _holds(output: Path, rows: list[dict[str, Any]]) -> bool:
    try:
        if output.suffix == ".parquet":
            return pq.read_table(output).equals(pa.Table.from_pylist(rows))
        return output.read_text(encoding="utf-8") == _as_lines(rows)
    except UNREADABLE:
        return False


def _as_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
