"""Files that are complete or absent, also on drives that cannot rename."""

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"
COPYING = ".copying"  # an empty file: the file of that name is being copied, so it is not complete
LEFTOVER = re.compile(rf"(?P<name>.+)\.\d+(?P<kind>{re.escape(PARTIAL)}|{re.escape(COPYING)})")
FULL = (errno.ENOSPC, errno.EDQUOT)
UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # what a drive says that cannot bring a folder to the disk
VISIBLE_WITHIN = 60  # seconds that a drive may take to show what was written


@contextmanager
def written_whole(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Write a file so that it is complete or absent: under another name, to the disk, then renamed.

    Where a drive cannot rename, it is copied, and a mark lies beside it until the copy is complete: `remove_leftovers`
    then removes both. A folder that was made for the file goes again if it could not be written.

    Args:
        path: The file.
        lasting: Whether it is there after the machine has failed, too; not so what is removed as soon as it is read.

    Raises:
        OSError: Of the write, e.g. a full disk; it names the file, and what is complete already stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    is_new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if lasting:
            _to_disk(partial)
        _put_in_place(partial, path)
        if lasting:
            _to_disk(path.parent)
    except OSError as error:
        _undo(partial, is_new)
        remedy = "make room" if error.errno in FULL else "put that right"
        raise OSError(
            error.errno,
            f"could not write {path} ({error.strerror or error}). Files that are complete stay; {remedy}, then go on "
            "with train(resume_from_checkpoint=True), or the same command again",
        ) from error
    except BaseException:
        _undo(partial, is_new)
        raise


def link_or_copy(source: Path, path: Path) -> None:
    """A finished file under a second name, without taking room twice where the drive can do that."""
    try:
        os.link(source, path)
    except OSError:
        with written_whole(path) as partial:
            shutil.copyfile(source, partial)


def remove_leftovers(folder: Path, names: re.Pattern[str]) -> bool:
    """Remove what killed writes of files of these names have left in a folder, and nothing else; whether there was any.

    Args:
        folder: Its own files are looked at, none below.
        names: The whole name of a file that is written here.
    """
    any_left = False
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        found = LEFTOVER.fullmatch(path.name)
        if found and names.fullmatch(found["name"]) and path.is_file():
            if found["kind"] == COPYING:
                path.with_name(found["name"]).unlink(missing_ok=True)
            path.unlink()
            any_left = True
    return any_left


def _put_in_place(partial: Path, path: Path) -> None:
    size = partial.stat().st_size
    try:
        os.replace(partial, path)
    except OSError as error:
        if path.is_dir() or error.errno in FULL:
            raise
        _copy(partial, path)
    _wait_until_seen(path, size)
    partial.with_suffix(COPYING).unlink(missing_ok=True)
    partial.unlink(missing_ok=True)


def _copy(partial: Path, path: Path) -> None:
    """Copy a file, marked until it is complete; a former file stays if it cannot be opened."""
    mark = partial.with_suffix(COPYING)
    try:
        mark.touch()
        with partial.open("rb") as source, path.open("wb") as target:
            try:
                shutil.copyfileobj(source, target)
                target.flush()
                _sync(target.fileno())
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    except BaseException:
        mark.unlink(missing_ok=True)
        raise


def _wait_until_seen(path: Path, size: int) -> None:
    """Wait until a drive shows a file as it was written."""
    start = time.monotonic()
    while not (path.exists() and path.stat().st_size == size):
        if time.monotonic() - start > VISIBLE_WITHIN:
            raise OSError(errno.EIO, f"after {VISIBLE_WITHIN} s the drive does not show it with its {size} bytes")
        time.sleep(0.05)


def _undo(partial: Path, is_new: bool) -> None:
    with suppress(OSError):
        partial.unlink(missing_ok=True)
    if is_new:
        with suppress(OSError):  # others have written into the folder, or it was not made
            partial.parent.rmdir()


def _to_disk(path: Path) -> None:
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows syncs no file that is only read
    except PermissionError:
        if is_folder:
            return  # Windows opens none
        raise
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
