"""Seconds, tokens and peak of memory of each phase of a run; a phase within another belongs to itself only."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from examples.benchmarks.common.live_bytes import LiveBytes, PhasePeaks


class Meter(Protocol):
    """What knows the largest memory since it was last asked to begin anew.

    Attributes:
        whole: The largest since it was made, with all that belongs to it.
    """

    whole: int

    def peak(self) -> int: ...
    def restart(self) -> None: ...
    def wait(self) -> None: ...


class CudaMeter:
    """Bytes that torch has allocated on the card.

    Attributes:
        context: Bytes of the card in use when it began, beyond what torch had reserved: the driver's context, and
            whatever other processes have.
        total: Bytes of the card.
    """

    def __init__(self):
        torch.zeros(1, device="cuda")
        free, total = torch.cuda.mem_get_info()
        self.context, self.total = total - free - torch.cuda.memory_reserved(), total
        self._reserved = 0
        self.restart()

    @property
    def whole(self) -> int:
        """What the card had to hold so far."""
        return self._reserved + self.context

    def limit_to(self, card: int) -> None:
        """Let a large card behave as one of so many bytes, of which the context takes its part."""
        torch.cuda.set_per_process_memory_fraction(min((card - self.context) / self.total, 1.0))

    def peak(self) -> int:
        self._reserved = max(self._reserved, torch.cuda.max_memory_reserved())
        return torch.cuda.max_memory_allocated()

    def restart(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        torch.cuda.synchronize()


class LiveMeter:
    """Bytes of all live tensors that torch's operators have returned, which `LiveBytes` counts."""

    def __init__(self, live: LiveBytes):
        self.live, self.whole = live, 0

    def peak(self) -> int:
        self.whole = max(self.whole, self.live.peak)
        return self.live.peak

    def restart(self) -> None:
        self.live.peak = self.live.live

    def wait(self) -> None:
        """The CPU computes while it is asked."""


@contextmanager
def metered(device: str, *, card: int) -> Iterator[CudaMeter | LiveMeter]:
    """The meter of a device, inside the block.

    Args:
        device: "cuda" or "cpu".
        card: Bytes that a card may have at most.
    """
    if device == "cuda":
        meter = CudaMeter()
        meter.limit_to(card)
        yield meter
    else:
        with LiveBytes() as live:
            yield LiveMeter(live)


class Phases(PhasePeaks):
    """Measures the phases of a run, lap by lap; the first lap warms up and is left out of the rates.

    Args:
        meter: Of memory.

    Attributes:
        peaks: Bytes, by name of phase, of all laps.
        longest: The longest completion in tokens.
    """

    def __init__(self, meter: Meter):
        self.meter = meter
        self.peaks: dict[str, int] = {}
        self.longest = 0
        self._seconds: list[Counter] = [Counter()]
        self._tokens: list[Counter] = [Counter()]
        self._names: list[str] = []
        self._since = time.perf_counter()

    def next_lap(self) -> None:
        self._settle()
        self._seconds.append(Counter())
        self._tokens.append(Counter())

    def count(self, name: str, tokens) -> None:
        """Tokens that a phase has worked on: a number, or a tensor that is not waited for."""
        self._tokens[-1][name] += tokens

    def count_completions(self, lengths: list[int]) -> None:
        """Tokens of completions that were just sampled."""
        self.count("generate", sum(lengths))
        self.longest = max(self.longest, *lengths)

    def _settle(self) -> None:
        self.meter.wait()
        now = time.perf_counter()
        if self._names:
            name = self._names[-1]
            self._seconds[-1][name] += now - self._since
            self.peaks[name] = max(self.peaks.get(name, 0), self.meter.peak())
        self._since = now
        self.meter.restart()

    # What came out

    def _measured(self, laps: list[Counter]) -> Counter:
        """Sums over the laps that count: finished ones but the first, or the first where there is no other."""
        finished = laps[:-1] or laps
        return sum(finished[1:] or finished[:1], Counter())

    @property
    def laps(self) -> int:
        """How many laps the rates are over."""
        return max(len(self._seconds) - 2, 1)

    @property
    def warmed_up(self) -> bool:
        """Whether the rates leave a first lap out."""
        return len(self._seconds) > 2

    def seconds(self) -> dict[str, float]:
        """By phase, per lap."""
        return {name: value / self.laps for name, value in self._measured(self._seconds).items()}

    def rates(self) -> dict[str, float]:
        """Tokens per second of each phase whose tokens were counted."""
        seconds, tokens = self._measured(self._seconds), self._measured(self._tokens)
        return {name: float(count) / seconds[name] for name, count in tokens.items() if seconds[name] > 0}
