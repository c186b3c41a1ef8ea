"""What a run's folder says of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trl_ext.trainer_kit.run_log import LOG, is_number, is_step, lines
from trl_ext.trainer_kit.whole_text import whole_text

Sample = dict[str, Any]  # step, prompt, completion, rewards, score
UNITS = ("kind", "time", "step", "epoch")  # in each line beside what is logged
SHOWN = 64  # samples that are kept of a Grow


@dataclass(frozen=True)
class Run:
    """A run, as far as it has come.

    Args:
        name: Of its folder.
        begin: The first line of its file: trainer, config, versions, plan.
        logs: What was logged, in order, each with its step.
        samples: Of a few steps, in order.
        end: The last line, None of a run that is still going, or was killed.
    """

    name: str
    begin: dict[str, Any]
    logs: list[dict[str, Any]]
    samples: list[Sample]
    end: dict[str, Any] | None

    @property
    def trainer(self) -> str:
        return str(self.begin.get("trainer", "unknown"))

    @property
    def names(self) -> list[str]:
        """Of all that was logged."""
        return list(dict.fromkeys(name for log in self.logs for name in log if name not in UNITS))

    def series(self, name: str) -> list[tuple[int, float]]:
        """Steps and finite values of what is logged under a name."""
        return [(log["step"], log[name]) for log in self.logs if is_number(log.get(name))]

    def values(self, name: str) -> list[float]:
        return [value for _, value in self.series(name)]

    def pairs(self, one: str, other: str) -> list[tuple[float, float]]:
        """Of two that are logged together."""
        return [(log[one], log[other]) for log in self.logs if is_number(log.get(one)) and is_number(log.get(other))]

    def option(self, name: str, default: Any = None) -> Any:
        """An option of its config; the default where it has none, or no number where one belongs."""
        value = self.begin.get("config", {}).get(name, default)
        return default if is_number(default) and not is_number(value) else value

    @property
    def steps(self) -> int:
        return max((log["step"] for log in self.logs), default=0)

    @property
    def of(self) -> int | None:
        """How many steps it has if nothing stops it; None of logs that do not say so."""
        of = (self.end or self.begin).get("of")
        return of if is_step(of) and of else None

    @property
    def seconds(self) -> float:
        """From its last begin to the last that was logged."""
        last = max([self.begin["time"], *(log["time"] for log in self.logs)])
        return last - self.begin["time"]


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
        ValueError: Where there is none, or nothing was logged yet.
    """
    folder, call = Path(folder), f"report of {str(folder)!r}"
    if not folder.is_dir():
        raise ValueError(f"{call}: there is no such folder. Give a trainer's output_dir.")
    found = list(lines(folder / LOG))
    begins = [line for line in found if line["kind"] == "begin"]
    if not begins:
        lacks = f"its {LOG} cannot be read" if (folder / LOG).exists() else f"it has no {LOG}"
        raise ValueError(
            f"{call}: {lacks}, which each trainer of trl_ext writes as it runs. Give a trainer's output_dir."
        )
    logs = [line for line in found if line["kind"] == "log"]
    if not logs:
        raise ValueError(f"{call}: nothing was logged yet. Wait for its first step that is logged (logging_steps).")
    ends = [i for i, line in enumerate(found) if line["kind"] == "end"]
    is_over = bool(ends) and found.index(begins[-1]) < ends[-1]
    samples = [_whole_sample(line) for line in found if line["kind"] == "sample"] or _of_grows(folder)
    end = found[ends[-1]] | {"peaks": _numbers(found[ends[-1]].get("peaks"))} if is_over else None
    return Run(whole_text(folder.resolve().name), _whole_begin(begins[-1]), logs, samples, end)


def _whole_begin(line: dict[str, Any]) -> dict[str, Any]:
    """With empty tables in place of damaged ones."""
    return (
        line | {name: _table(line.get(name)) for name in ("config", "versions")} | {"plan": _numbers(line.get("plan"))}
    )


def _whole_sample(line: Sample) -> Sample:
    """With None in place of scores that are no numbers."""
    rewards = {name: _number(value) for name, value in _table(line.get("rewards")).items()}
    return line | {"rewards": rewards} | ({"score": _number(line["score"])} if "score" in line else {})


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _numbers(value: Any) -> dict[str, float]:
    return {name: number for name, number in _table(value).items() if is_number(number)}


def _number(value: Any) -> float | None:
    return value if is_number(value) else None


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
