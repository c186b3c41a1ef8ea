"""Labels on disk: one line of JSON each, written as it comes, so that nobody is asked twice."""

import json
import os
from hashlib import sha256
from pathlib import Path

from trl_ext.query_types.labels import Label, is_label


def query_key(query: str) -> str:
    """Stands for a query, which is not written down."""
    return sha256(query.encode("utf-8", "surrogatepass")).hexdigest()


class KeptLabels:
    """The labels of one labeler in a file, which may hold those of others too.

    Args:
        path: A .jsonl file, made here, with its folder; None: nothing is kept.
        labeler: Its name.
    """

    def __init__(self, path: Path | None, labeler: str):
        self._path, self._labeler = path, labeler
        self._found = _read(path, labeler) if path is not None and path.exists() else {}
        if path is not None:
            _check_writable(path)

    def of(self, query: str) -> Label | None:
        return self._found.get(query_key(query))

    def add(self, query: str, label: Label) -> None:
        self._found[query_key(query)] = label
        if self._path is not None:
            line = {"query": query_key(query), "labeler": self._labeler, **label._asdict()}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _check_writable(path: Path) -> None:
    """Make the file, before anybody is asked for what could not be kept."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise ValueError(
            f"{_asked(path)} it cannot be written ({error.strerror or error}). Give a file where you may write."
        ) from error


def _read(path: Path, labeler: str) -> dict[str, Label]:
    """A last line that a killed run has left half-written is taken away."""
    if not path.is_file():
        raise ValueError(f"{_asked(path)} it is a folder. Give the name of a file in it.")
    whole, end, torn = path.read_bytes().rpartition(b"\n")
    rows = [_row(line, path, number) for number, line in enumerate(whole.splitlines(), start=1)]
    if torn:
        if not whole and not torn.startswith(b'{"query":'):
            raise _not_labels(path, 1)
        os.truncate(path, len(whole) + len(end))
    own = [row for row in rows if row["labeler"] == labeler]
    return {row["query"]: Label(row["query_type"], row["confidence"], row["reason"]) for row in own}


def _row(line: bytes, path: Path, number: int) -> dict:
    try:
        row = json.loads(line)
        good = {"query", "labeler"} <= set(row) and is_label(row["query_type"], row["confidence"], row["reason"])
    except (ValueError, TypeError, KeyError):
        good = False
    if not good:
        raise _not_labels(path, number)
    return row


def _not_labels(path: Path, number: int) -> ValueError:
    return ValueError(
        f"{_asked(path)} its line {number} is something else. Give a file that `label_query_types` has written, or the "
        "name of a new one."
    )


def _asked(path: Path) -> str:
    return f"label_query_types(keep={str(path)!r}): expected a file of labels, and"
