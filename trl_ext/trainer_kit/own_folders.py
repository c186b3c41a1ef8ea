"""Folders in which a run writes over nothing but its own: a mark in them says whose they are."""

import errno
import json
import os
import re
import tempfile
from pathlib import Path

from trl_ext.trainer_kit.run_changes import differences
from trl_ext.trainer_kit.run_record import Record, read_object
from trl_ext.trainer_kit.whole_files import written_whole


def check_is_folder(folder: Path, *, call: str) -> None:
    """Raise a ValueError if a folder, which need not exist, cannot be made or written: a file has its name or a parent's."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(
            f"{call}: expected a folder to write into, but {str(nearest)!r} is a file. Give another name."
        )
    refusal = f"{call}: expected a folder to write into, but {str(nearest)!r} may not be written"
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{refusal}. Give another place, or ask for the permission.")
    try:
        tempfile.TemporaryDirectory(dir=nearest, prefix=".trl_ext_").cleanup()
    except OSError as error:  # of root all is allowed, though nothing can be made, e.g. in /proc
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return  # a full disk is told of by what is written
        raise ValueError(f"{refusal} ({error.strerror}). Give another place.") from error


def check_own_folder(folder: Path, mark: str, run: Record, *, names: re.Pattern[str], call: str) -> None:
    """Raise a ValueError if a run would write over what is not its own.

    A folder with the run's mark is its own. Without a mark it may hold anything but what the run writes.

    Args:
        folder: Where it writes; it need not exist.
        mark: Name of the file that says whose the folder is.
        run: Of this run.
        names: Whole names of what it writes into the folder.
        call: For messages.
    """
    check_is_folder(folder, call=call)
    if (folder / mark).is_file():
        before = read_object(folder / mark, "what says whose the folder is. Give another folder.")
        changed = differences(before, run)
        if changed:
            raise ValueError(
                f"{call}: {str(folder)!r} holds what another run has written ({'; '.join(changed)}). Give another folder, "
                "or remove that one yourself."
            )
        return
    taken = sorted(path.name for path in folder.iterdir() if names.fullmatch(path.name)) if folder.is_dir() else []
    if taken:
        raise ValueError(
            f"{call}: {str(folder)!r} holds {taken[0]!r}, which this run did not write and would write over. Give another "
            "folder, or remove that yourself."
        )


def mark_folder(folder: Path, mark: str, run: Record) -> None:
    """Say that a folder is a run's."""
    with written_whole(folder / mark) as partial:
        partial.write_text(json.dumps(run, indent=1, sort_keys=True), encoding="utf-8")


def claim_folder(folder: Path, mark: str, run: Record, *, names: re.Pattern[str], call: str) -> None:
    """Make a folder a run's own before it writes anything else; a ValueError as of `check_own_folder`."""
    check_own_folder(folder, mark, run, names=names, call=call)
    mark_folder(folder, mark, run)
