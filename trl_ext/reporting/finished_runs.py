"""What a run's folder says of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trl_ext.trainer_kit.logged_run import Run, Sample, logged_run
from trl_ext.trainer_kit.run_log import LOG
from trl_ext.trainer_kit.whole_text import whole_text

SHOWN = 64  # samples that are kept of a Grow


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Runs by their folders, each once; see `read_run`."""
    first: dict[Path, str | Path] = {}
    for folder in folders:
        first.setdefault(Path(folder).resolve(), folder)
    runs = [read_run(folder) for folder in first.values()]
    return [replace(run, name=name) for run, name in zip(runs, names_of(list(first)), strict=True)]


def names_of(folders: Sequence[Path]) -> list[str]:
    """What to call each: its own name, with those above it as far as they tell it from another of that name.

    >>> names_of([Path("/a/ppo"), Path("/b/ppo"), Path("/b/raft")])
    ['a/ppo', 'b/ppo', 'raft']
    """
    return [whole_text(_told_apart(folder, [other for other in folders if other != folder])) for folder in folders]


def _told_apart(folder: Path, others: list[Path]) -> str:
    taken = next(
        n for n in range(1, len(folder.parts) + 1) if all(folder.parts[-n:] != one.parts[-n:] for one in others)
    )
    return str(Path(*folder.parts[-taken:]))


def read_run(folder: str | Path) -> Run:
    """A run by its folder.

    Raises:
        ValueError: Where there is none, or it neither says of what it is nor has logged anything.
    """
    folder, call = Path(folder), f"report of {str(folder)!r}"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{call}: it is a file. Give the folder of a run, a trainer's output_dir.")
    if not folder.is_dir():
        raise ValueError(f"{call}: there is no such folder. Give a trainer's output_dir.")
    run = logged_run(folder)
    if run is None:
        lacks = f"its {LOG} cannot be read" if (folder / LOG).exists() else f"it has no {LOG}"
        raise ValueError(
            f"{call}: {lacks}, which each trainer of trl_ext writes as it runs. Give a trainer's output_dir."
        )
    if not run.logs and not run.begin["config"]:
        raise ValueError(f"{call}: nothing was logged yet. Wait for its first step that is logged (logging_steps).")
    return replace(run, samples=run.samples or _of_grows(folder))


def _of_grows(folder: Path) -> list[Sample]:
    """Samples of the first and the last finished Grow; the step is the stage."""
    files = sorted(folder.glob("grow-*.parquet"))
    return [sample for file in dict.fromkeys(files[:1] + files[-1:]) for sample in _of_grow(file)]


def _of_grow(file: Path) -> list[Sample]:
    try:
        rows, stage = next(pq.ParquetFile(file).iter_batches(SHOWN), None), int(file.stem.split("-")[1])
        return [] if rows is None else [_sample(row, stage) for row in rows.to_pylist()]
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return []  # a damaged or another file: what else is there is shown


def _sample(row: dict[str, Any], stage: int) -> Sample:
    rewards = {name.removeprefix("reward/"): value for name, value in row.items() if name.startswith("reward/")}
    texts = {name: _text(row[name]) for name in ("prompt", "completion")}
    return {"step": stage, **texts, "rewards": rewards, "score": row.get("score")}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(str(message.get("content") or "") for message in value or [])
