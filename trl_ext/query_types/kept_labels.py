"""Query types on disk, written as they come."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_ext.query_types.labels import Label, is_label
from trl_ext.trainer_kit.kept_lines import KeptLines


class KeptLabels:
    """The labels of one labeler in a file, which may hold those of others too.

    Args:
        path: A .jsonl file, made here, with its folder; None: nothing is kept.
        labeler: Its name.
    """

    def __init__(self, path: Path | None, labeler: str):
        self._lines = KeptLines(path, labeler, key="query", is_whole=_is_whole, writer="label_query_types(keep={})")

    def of(self, query: str) -> Label | None:
        row = self._lines.of(query)
        return None if row is None else Label(row["query_type"], row["confidence"], row["reason"])

    def add(self, query: str, label: Label) -> None:
        self._lines.add(query, label._asdict())


def _is_whole(row: Mapping[str, Any]) -> bool:
    return is_label(row["query_type"], row["confidence"], row["reason"])
