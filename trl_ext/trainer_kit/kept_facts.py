"""What is found by reading all rows of a data set, kept: read once, whichever trainer, process or run asks again.

…/json/default-…/trl_ext-<digest>.json              of a data set that is on disk: beside what datasets has made of it
~/.cache/huggingface/datasets/trl_ext-<digest>.json    of rows that are in memory alone, known by their content
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import datasets
from datasets import Dataset
from filelock import FileLock

from trl_ext.trainer_kit.whole_files import written_whole

VERSION = 1  # of what is found: raised where a check reads otherwise
KEPT_FROM = 10_000  # rows; fewer are read again sooner than it is worth a file
PATIENCE = 600.0  # seconds that a process waits for what another one reads, before it reads for itself
AT_ONCE = 1000  # rows that are in memory together
_contents: WeakKeyDictionary[Dataset, dict[tuple, str]] = WeakKeyDictionary()


def kept(
    dataset: Dataset,
    what: str,
    find: Callable[[], Any],
    *,
    columns: Sequence[str] | None = None,
    by: Sequence[Any] | None = (),
) -> Any:
    """What `find` finds, as JSON gives it back; an error that it raises is not kept.

    Where it was not found before, one process of a machine reads and the others wait for it; if it fails, or dies, the next
    one reads. No process waits for another's call. Nothing is kept of few rows, where datasets.disable_caching() says so, or
    where nothing can be written.

    Args:
        dataset: Whose rows are read.
        what: Is found of them.
        find: Reads them.
        columns: That are read; None: all.
        by: What it depends on besides, as JSON takes it; None: on more than can be said, so it is not kept.
    """
    if by is None or len(dataset) < KEPT_FROM or not datasets.is_caching_enabled():
        return _as_json(find())
    path = _place(dataset, what, columns, by)
    with _turn(path):
        found = _read(path)
        if found is None:
            found = {"found": _as_json(find())}
            with suppress(OSError), written_whole(path) as partial:
                partial.write_text(json.dumps(found), encoding="utf-8")
    return found["found"]


def batches(dataset: Dataset, columns: Sequence[str]) -> Iterator[dict[str, list]]:
    """Some columns as they are stored, so many rows at a time."""
    yield from dataset.select_columns(list(columns)).with_format(None).iter(AT_ONCE)


def _as_json(found: Any) -> Any:
    return json.loads(json.dumps(found))


def _place(dataset: Dataset, what: str, columns: Sequence[str] | None, by: Sequence[Any]) -> Path:
    files = [file["filename"] for file in dataset.cache_files]
    rows = _identity(dataset, files) if files else _content(dataset, tuple(columns or dataset.column_names))
    said = json.dumps([VERSION, what, columns, by, rows], default=str)
    folder = Path(files[0]).parent if files else Path(datasets.config.HF_DATASETS_CACHE)
    return folder / f"trl_ext-{hashlib.blake2b(said.encode(), digest_size=16).hexdigest()}.json"


def _identity(dataset: Dataset, files: list[str]) -> list:
    """Of rows on disk: datasets' fingerprint, and when the files were written that have them."""
    return [dataset._fingerprint, [[name, *_written(name)] for name in files]]


def _written(name: str) -> tuple[int, int]:
    """Size and time of a file; nothing of one that was removed since it was opened."""
    try:
        stat = os.stat(name)
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _content(dataset: Dataset, columns: tuple[str, ...]) -> str:
    """Of rows in memory: what is in them, since another run makes them anew."""
    known = _contents.setdefault(dataset, {})
    key = (dataset._fingerprint, columns)
    if key not in known:
        digest = hashlib.blake2b(f"{dataset.format['type']}".encode(), digest_size=16)
        if dataset.format["type"] == "custom":  # a function that makes others of them
            digest.update(dataset._fingerprint.encode())
        for table in dataset.select_columns(list(columns)).with_format("arrow").iter(10 * AT_ONCE):
            digest.update(str(table.schema).encode())
            for batch in table.combine_chunks().to_batches():
                digest.update(batch.serialize())
        known[key] = digest.hexdigest()
    return known[key]


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """One process of a machine at a time, where a lock can be written, and is had in time."""
    lock = FileLock(f"{path}.lock")
    with suppress(OSError, NotImplementedError):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    try:
        yield
    finally:
        lock.release()  # nothing where it was not had


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it is not there, or damaged
        return None
    return found if isinstance(found, dict) and "found" in found else None
