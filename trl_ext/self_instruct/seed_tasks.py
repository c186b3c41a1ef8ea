"""Tasks, and the files that they are read from: the paper's shape, or one instance a row."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trl_ext.trainer_kit.config_checks import checked_list
from trl_ext.trainer_kit.row_files import UNREADABLE, json_rows
from trl_ext.trainer_kit.whole_files import written_whole

SHAPES = (
    "`instruction`, text, with `instances`, a list of {input, output}, or with `input` and `output`, and with "
    "`is_classification`, true or false, where it is known"
)


class Instance(NamedTuple):
    """An input, empty where the task needs none, and an output."""

    input: str
    output: str


@dataclass(frozen=True)
class Task:
    """An instruction with instances of it.

    Args:
        instruction: What is to be done.
        is_classification: Whether its outputs are of a finite set of labels; None: not known.
        instances: Inputs with outputs, maybe none.
    """

    instruction: str
    is_classification: bool | None = None
    instances: tuple[Instance, ...] = ()


def read_seeds(seeds: str | os.PathLike | Iterable[dict], *, call: str) -> list[Task]:
    """The tasks of a .jsonl or .json file, or of rows; those of one instruction are one task.

    Raises:
        ValueError: Names the first row that is no task.
    """
    if not isinstance(seeds, str | os.PathLike):
        rows = checked_list(seeds, call=f"{call}(seeds=…)")
        return _joined([task_of(row, f"{call}: seed {number}") for number, row in enumerate(rows)])
    path = Path(seeds).expanduser()
    try:
        rows = list(json_rows(path))
    except UNREADABLE as error:
        raise ValueError(f"{call}: the seeds {str(path)!r} cannot be read ({error}). Mend the file.") from error
    return _joined([task_of(row, f"{call}: row {number} of {str(path)!r}") for number, row in enumerate(rows)])


def task_of(row: Any, where: str) -> Task:
    """A row as a task; a ValueError that begins with `where` for what is none."""
    if not isinstance(row, dict) or not _is_text(row.get("instruction")):
        raise _no_task(where, row)
    kind = row.get("is_classification")
    given = row.get("instances")
    if given is None:
        given = [row] if row.get("output") is not None else []
    if not isinstance(given, list) or not isinstance(kind, bool | None):
        raise _no_task(where, row)
    return Task(row["instruction"].strip(), kind, tuple(_instance(each, where, row) for each in given))


def write_tasks(path: Path, tasks: list[Task]) -> None:
    """A .jsonl file that `read_seeds` reads."""
    rows = [asdict(task) | {"instances": [each._asdict() for each in task.instances]} for task in tasks]
    with written_whole(path) as partial:
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _instance(given: Any, where: str, row: dict) -> Instance:
    is_one = isinstance(given, dict) and isinstance(given.get("input"), str | None) and _is_text(given.get("output"))
    if not is_one:
        raise _no_task(where, row)
    return Instance((given.get("input") or "").strip(), given["output"].strip())


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _no_task(where: str, row: Any) -> ValueError:
    shown = json.dumps(row, ensure_ascii=False, default=str)[:120]
    return ValueError(f"{where} is {shown}: expected {SHAPES}, none of them empty. Mend that row, or leave it out.")


def _joined(tasks: list[Task]) -> list[Task]:
    found: dict[str, Task] = {}
    for task in tasks:
        first = found.setdefault(task.instruction, Task(task.instruction, task.is_classification))
        kind = first.is_classification if first.is_classification is not None else task.is_classification
        found[task.instruction] = Task(task.instruction, kind, first.instances + task.instances)
    return list(found.values())
