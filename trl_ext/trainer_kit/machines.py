"""Several processes, maybe on several machines: whether they were begun alike, and who sees what the others write."""

import platform
import time
from pathlib import Path
from uuid import uuid4

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from trl_ext.trainer_kit.processes import together
from trl_ext.trainer_kit.run_changes import differences
from trl_ext.trainer_kit.run_record import Record

VISIBLE_WITHIN = 60.0  # seconds that a shared drive may take to show another machine what was written
MARK = ".trl_ext_seen_"


def machine_of(process: int, machines: list[str]) -> str:
    """A process as messages name it; `machines`: of all processes."""
    return f"process {process} on {machines[process]}"


def machines(accelerator: Accelerator) -> list[str]:
    """The name of each process's machine."""
    return gather_object([platform.node() or "a machine without a name"])


def who_says(said: list[dict[str, list[str]]], names: list[str], *, unknown: str) -> dict[str, list[str]]:
    """What is wrong with each of some things, as any process says; with the first that says so, where not all do.

    >>> who_says([{"a": [], "b": ["empty"]}, {"a": ["empty"]}], ["here", "there"], unknown="gone")
    {'a': ['process 1 on there: empty'], 'b': ['process 0 on here: empty', 'process 1 on there: gone']}

    Args:
        said: By each process, of the things that it knows.
        names: Of the processes' machines.
        unknown: Said by who does not know a thing.
    """
    found: dict[str, list[str]] = {}
    for thing in dict.fromkeys(thing for one in said for thing in one):
        each, found[thing] = [one.get(thing, [unknown]) for one in said], []
        for problem in dict.fromkeys(problem for one in each for problem in one):
            who = [process for process, one in enumerate(each) if problem in one]
            place = "" if len(who) == len(said) else f"{machine_of(who[0], names)}: "
            found[thing].append(f"{place}{problem}")
    return found


def check_alike(run: Record, accelerator: Accelerator, *, call: str) -> None:
    """Raise a ValueError, in all processes, where one begins otherwise than the first.

    Args:
        run: What decides this process's run.
        accelerator: Whose processes are compared.
        call: For the message.
    """
    runs, names = gather_object([run]), machines(accelerator)
    for process, other in enumerate(runs):
        found = differences(runs[0], other, names=("on process 0", f"on process {process}"))
        if found:
            raise ValueError(
                f"{call}: expected all processes to begin alike, but {machine_of(process, names)} differs from "
                f"{machine_of(0, names)}: {'; '.join(found[:5])}. Give each of them the same options, data and weights; "
                "where a model is made anew, seed torch before it is."
            )


def check_folder(folder: Path, accelerator: Accelerator, *, on_each: bool, call: str, instead: str) -> None:
    """Raise a ValueError, in all processes, unless each sees what is written for it, and nobody writes over another's.

    Args:
        folder: That a run writes into, as this process calls it.
        accelerator: Whose processes look.
        on_each: Whether the first process of each machine writes for that machine, rather than the first of all for all.
        call, instead: For the message: where the folder was given, and what to do where it is not seen.
    """
    me = accelerator.process_index
    writer = me - accelerator.local_process_index if on_each else 0
    token = gather_object([uuid4().hex])[0]
    marks = [folder / f"{MARK}{token}_{process}" for process in range(accelerator.num_processes)]
    with together(accelerator):
        if writer == me:
            folder.mkdir(parents=True, exist_ok=True)
            marks[me].touch()
    seen = _is_seen(marks[writer])
    others = [process for process, mark in enumerate(marks) if on_each and process != writer and mark.exists()]
    said, names = gather_object([(str(folder), writer, seen, others)]), machines(accelerator)
    if writer == me:
        marks[me].unlink(missing_ok=True)
    for process, (name, writer, seen, others) in enumerate(said):
        if others:
            raise ValueError(
                f"{call}, save_on_each_node=True: {machine_of(writer, names)} and {machine_of(others[0], names)} write into "
                f"one folder, {name!r}, and so over each other's files. Leave save_on_each_node out."
            )
        if not seen:
            raise ValueError(
                f"{call}: {machine_of(process, names)} does not see in its folder {name!r} what "
                f"{machine_of(writer, names)} writes into {said[writer][0]!r}. {instead}"
            )


def are_on_one_machine(accelerator: Accelerator) -> bool:
    """Whether all processes are; they must ask together."""
    return all(gather_object([accelerator.process_index == accelerator.local_process_index]))


def seen(path: Path) -> Path:
    """A file that one of the processes has written, once this one sees it; a ValueError if a drive does not show it."""
    if not _is_seen(path):
        raise ValueError(
            f"{platform.node() or 'a machine without a name'} does not see {str(path)!r}, which another process has written, within "
            f"{VISIBLE_WITHIN:g} s. All machines need one disk that shows them the same; then go on with "
            "train(resume_from_checkpoint=True)."
        )
    return path


def bits(tensor: Tensor) -> int:
    """The sum of a tensor's bits, read as whole numbers: the same on every device, in every order."""
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    whole = flat[: len(flat) - len(flat) % 8].view(torch.int64).sum().item()
    return int(whole) + int(flat[len(flat) - len(flat) % 8 :].sum().item())


def check_loaded(state: dict[str, int], accelerator: Accelerator, *, call: str) -> None:
    """Raise a ValueError, in all processes, where one has read another state than the first; `state`: `bits` by part."""
    states, names = gather_object([state]), machines(accelerator)
    for process, other in enumerate(states):
        unlike = [part for part, value in states[0].items() if other[part] != value]
        if unlike:
            raise ValueError(
                f"{call}: {machine_of(process, names)} has read other numbers than {machine_of(0, names)}, of "
                f"{' and '.join(unlike)}: their checkpoints of that name are not of one run. Copy that of {names[0]} over the "
                "other, but for files that end in the number of a process."
            )


def _is_seen(mark: Path) -> bool:
    until = time.monotonic() + VISIBLE_WITHIN
    while not mark.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
