"""How far `trl-ext generate` and `trl-ext score` are: a bar, or lines where there is no terminal."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trl_ext.generation.protocol import Part
from trl_ext.sequences.samples import Sample

EVERY = 30.0  # seconds between lines


class PartProgress:
    """A bar of parts, on stderr, with tokens per second (samples, where they come without token ids). Without a terminal a
    line now and then.

    Args:
        what: Is done with the parts.
        parts: Their number.
        shown: Whether there is a bar at all.
        unit: What parts are called.
    """

    def __init__(self, what: str, parts: int, *, shown: bool = True, unit: str = "parts"):
        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            unit,
            TextColumn("{task.fields[speed]}"),
        )
        console = Console(stderr=True)
        drawn, self._lines = shown and console.is_terminal, shown and not console.is_terminal
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not drawn)
        self._task = self._bar.add_task(what, total=parts, speed="")
        self.what, self.parts, self.unit, self._done = what, parts, unit, 0
        self._start = self._said = time.perf_counter()
        self._samples = self._tokens = 0

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *error):
        self._bar.stop()

    def skip(self, parts: int) -> None:
        """Parts that are done already, and do not count towards the speed."""
        self._done = parts
        self._bar.update(self._task, completed=parts)

    def count(self, part: Part, samples: list[Sample]) -> list[Sample]:
        """The samples as they are."""
        self._samples += len(samples)
        self._tokens += sum(len(sample["completion_ids"] or []) for sample in samples)
        return samples

    def advance(self) -> None:
        self._done += 1
        now = time.perf_counter()
        speed = self.speed(now - self._start)
        self._bar.update(self._task, advance=1, speed=speed)
        if self._lines and now - self._said >= EVERY:
            self._said = now
            print(f"{self.what}: {self._done} of {self.parts} {self.unit}{speed and f', {speed}'}", file=sys.stderr)

    def speed(self, seconds: float) -> str:
        """Of what was counted so far."""
        count, unit = (self._tokens, "tokens") if self._tokens else (self._samples, "samples")
        return f"{count / seconds:,.0f} {unit}/s" if count else ""
