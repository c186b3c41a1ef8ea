"""Folders in which a run writes over nothing but its own: a mark in them says whose they are."""

import json
import re
from pathlib import Path
from typing import Any

from trl_ext.trainer_kit.whole_files import written_whole

Run = dict[str, Any]  # what decides what a run writes, as JSON takes it


def check_is_folder(folder: Path, *, call: str) -> None:
    """Raise a ValueError if a folder, which need not exist, cannot be made since a file has its name or a parent's."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(
            f"{call}: expected a folder to write into, but {str(nearest)!r} is a file. Give another name."
        )


def check_own_folder(folder: Path, mark: str, run: Run, *, names: re.Pattern[str], call: str) -> None:
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
        _check_same(json.loads((folder / mark).read_text()), run, call=f"{call}: {str(folder)!r}")
        return
    taken = sorted(path.name for path in folder.iterdir() if names.fullmatch(path.name)) if folder.is_dir() else []
    if taken:
        raise ValueError(
            f"{call}: {str(folder)!r} holds {taken[0]!r}, which this run did not write and would write over. Give another "
            "folder, or remove that yourself."
        )


def mark_folder(folder: Path, mark: str, run: Run) -> None:
    """Say that a folder is a run's."""
    with written_whole(folder / mark) as partial:
        partial.write_text(json.dumps(run, indent=1, sort_keys=True))


def _check_same(before: Run, now: Run, *, call: str) -> None:
    names = sorted(before.keys() | now.keys())
    changed = [f"{n}: {before.get(n)!r} then, {now.get(n)!r} now" for n in names if before.get(n) != now.get(n)]
    if changed:
        raise ValueError(
            f"{call} holds what another run has written ({'; '.join(changed)}). Give another folder, or remove that one "
            "yourself."
        )


def claim_folder(folder: Path, mark: str, run: Run, *, names: re.Pattern[str], call: str) -> None:
    """Make a folder a run's own before it writes anything else; a ValueError as of `check_own_folder`."""
    check_own_folder(folder, mark, run, names=names, call=call)
    mark_folder(folder, mark, run)
