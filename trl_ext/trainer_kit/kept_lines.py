"""Answers on disk: one line of JSON each, written as it comes, so that nobody is asked twice."""

import json
import os
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any


def text_key(text: str) -> str:
    """Stands for a text, which is not written down."""
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def kept_file(keep: str | os.PathLike | None, *, labeler: str, needed: bool, call: str) -> Path | None:
    """Where labels are kept, as it is given; a ValueError for none where it is `needed`, and for what is no name."""
    if keep is None and needed:
        raise ValueError(
            f"{call}(keep=None): the labels of {labeler} would be lost with an error. Give a file for them, e.g. "
            "keep='labels.jsonl'."
        )
    if not isinstance(keep, str | os.PathLike | None):
        raise ValueError(f"{call}(keep={keep!r}): expected the name of a .jsonl file, or None.")
    return None if keep is None else Path(keep).expanduser()


class KeptLines:
    """What one labeler has said, in a file which may hold what others did too.

    Args:
        path: A .jsonl file, made here, with its folder; None: nothing is kept.
        labeler: Its name.
        key: What a line calls that which was asked, of which it has `text_key`.
        is_whole: Whether a line's values are what is kept here.
        writer: The function that keeps, and its argument, for messages.
    """

    def __init__(
        self,
        path: Path | None,
        labeler: str,
        *,
        key: str,
        is_whole: Callable[[Mapping[str, Any]], bool],
        writer: str,
    ):
        self._path, self._labeler, self._key, self._is_whole, self._writer = path, labeler, key, is_whole, writer
        self._found = self._read(path) if path is not None and path.exists() else {}
        if path is not None:
            self._check_writable(path)

    def of(self, asked: str) -> dict[str, Any] | None:
        return self._found.get(text_key(asked))

    def add(self, asked: str, values: dict[str, Any]) -> None:
        self._found[text_key(asked)] = values
        if self._path is not None:
            line = {self._key: text_key(asked), "labeler": self._labeler, **values}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _check_writable(self, path: Path) -> None:
        """Make the file, before anybody is asked for what could not be kept."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a", encoding="utf-8").close()
        except OSError as error:
            raise ValueError(
                f"{self._asked(path)} it cannot be written ({error.strerror or error}). Give a file where you may write."
            ) from error

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        """A last line that a killed run has left half-written is taken away."""
        if not path.is_file():
            raise ValueError(f"{self._asked(path)} it is a folder. Give the name of a file in it.")
        whole, end, torn = path.read_bytes().rpartition(b"\n")
        rows = [self._row(line, path, number) for number, line in enumerate(whole.splitlines(), start=1)]
        if torn:
            if not whole and not torn.startswith(f'{{"{self._key}":'.encode()):
                raise self._not_ours(path, 1)
            os.truncate(path, len(whole) + len(end))
        return {row[self._key]: row for row in rows if row["labeler"] == self._labeler}

    def _row(self, line: bytes, path: Path, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
            good = {self._key, "labeler"} <= set(row) and self._is_whole(row)
        except (ValueError, TypeError, KeyError):
            good = False
        if not good:
            raise self._not_ours(path, number)
        return row

    def _not_ours(self, path: Path, number: int) -> ValueError:
        function = self._writer.partition("(")[0]
        return ValueError(
            f"{self._asked(path)} its line {number} is something else. Give a file that `{function}` has written, or the "
            "name of a new one."
        )

    def _asked(self, path: Path) -> str:
        return f"{self._writer.format(repr(str(path)))}: expected a file of labels, and"
