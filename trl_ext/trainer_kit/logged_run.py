"""A run as far as its folder's log says: what was logged, of what, and samples."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from trl_ext.trainer_kit.run_log import LOG, is_number, is_step, lines
from trl_ext.trainer_kit.whole_text import whole_text

Sample = dict[str, Any]  # step, prompt, completion, rewards, score
UNITS = ("kind", "time", "step", "epoch")  # in each line beside what is logged


@dataclass(frozen=True)
class Run:
    """A run, as far as it has come.

    Args:
        name: Of its folder.
        begin: The first line of its file: trainer, config, versions, plan.
        logs: What was logged, in order, each with its step.
        samples: Of a few steps, in order.
        end: The last line, None of a run that is still going, was killed, or failed.
        failure: The error that has ended it.
        seconds_before: What was spent before its last begin on steps that it went on from.
    """

    name: str
    begin: dict[str, Any]
    logs: list[dict[str, Any]]
    samples: list[Sample]
    end: dict[str, Any] | None
    failure: str | None = None
    seconds_before: float = 0.0

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
        """From each begin to the last that was logged of what is gone on from, or left at the end."""
        return self.seconds_before + _seconds([self.begin, *self.logs, *([self.end] if self.end else [])])


def logged_run(folder: Path) -> Run | None:
    """A run by its folder; None where none was begun."""
    found = list(lines(folder / LOG))
    begins = [line for line in found if line["kind"] == "begin"]
    if not begins:
        return None
    logs, samples = ([line for line in found if line["kind"] == kind] for kind in ("log", "sample"))
    last = found[found.index(begins[-1]) :]
    ended = next((line for line in reversed(last) if line["kind"] in ("end", "failure")), {"kind": None})
    end = ended | {"peaks": _numbers(ended.get("peaks"))} if ended["kind"] == "end" else None
    failure = str(ended.get("error")) if ended["kind"] == "failure" else None
    name, samples = whole_text(folder.resolve().name), [_whole_sample(line) for line in samples]
    return Run(name, _whole_begin(begins[-1]), logs, samples, end, failure, _seconds_before(found, begins))


def _seconds_before(found: list[dict[str, Any]], begins: list[dict[str, Any]]) -> float:
    """Of all sessions but the last."""
    places = [found.index(begin) for begin in begins]
    return sum(_seconds(found[one:other]) for one, other in pairwise(places))


def _seconds(session: list[dict[str, Any]]) -> float:
    """From the first of its lines to the last; clocks may be set back."""
    return max(line["time"] for line in session) - session[0]["time"]


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
