"""Clock, pass counter and memory gauge of a PPO run. Needs torch only, so that both versions of TRL can be under it.

Time belongs to the innermost phase that is open; what lies in none belongs to the base phase. A rollout is everything
from one generation to the next.
"""

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

GENERATION, SCORING, PASSES = "generation", "scoring", "reference and value passes"
FORWARD, BACKWARD, OPTIMIZER = "training forward", "backward", "optimizer"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PHASES = (GENERATION, SCORING, PASSES, FORWARD, BACKWARD, OPTIMIZER)


class Meter:
    """Seconds and tokens of each rollout, by phase.

    Args:
        clock: Seconds now, one of `CLOCKS`. With one thread, seconds of CPU do not count other processes.

    Attributes:
        rollouts: Per rollout, seconds by phase.
        forward, backward: Per rollout, tokens that went through a trunk in either direction, by phase.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.rollouts: list[Counter] = []
        self.forward: list[Counter] = []
        self.backward: list[Counter] = []
        self._clock, self._since = clock, clock()
        self._open: list[str] = []
        self._base = FORWARD

    def begin_rollout(self) -> None:
        """All until the next call is another rollout."""
        self._settle()
        for record in (self.rollouts, self.forward, self.backward):
            record.append(Counter())

    def finish(self, *, imports: int) -> dict:
        """The last rollout is over: what was measured, memory above what the process had after its `imports`."""
        self._settle()
        records = {"seconds": self.rollouts, "forward": self.forward, "backward": self.backward}
        return records | {"memory": peak_bytes() - imports}

    def base(self, name: str) -> None:
        """What belongs to no phase belongs to this one from now on."""
        self._settle()
        self._base = name

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside belongs to the phase of that name."""
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def timed(self, function: Callable, name: str | Callable[..., str]) -> Callable:
        """The function as a phase; its name may depend on the arguments."""

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            with self.phase(name if isinstance(name, str) else name(*args, **kwargs)):
                return function(*args, **kwargs)

        return wrapped

    def time_optimizers(self) -> None:
        """Every optimizer's step is a phase, as long as the process lives."""
        steps = []

        def begin(*_):
            steps.append(self.phase(OPTIMIZER))
            steps[-1].__enter__()

        register_optimizer_step_pre_hook(begin)
        register_optimizer_step_post_hook(lambda *_: steps.pop().__exit__(None, None, None))

    def count_passes(self, model: nn.Module) -> None:
        """Count what goes through a model's decoder, and through copies that are made of it."""

        def count(layer, args, output):
            if not self.forward:
                return
            states = output[0] if isinstance(output, tuple) else output
            tokens, name = states.size(0) * states.size(1), self._now()
            self.forward[-1][name] += tokens
            if states.requires_grad:
                states.register_hook(lambda gradient: self.backward[-1].update({name: tokens}))

        model.base_model.layers[-1].register_forward_hook(count)

    def _now(self) -> str:
        return self._open[-1] if self._open else self._base

    def _settle(self) -> None:
        now = self._clock()
        if self.rollouts:
            self.rollouts[-1][self._now()] += now - self._since
        self._since = now


def resident_bytes() -> int:
    """Memory of this process now."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most that it ever was. `getrusage` would begin with the peak of the process that started this one."""
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
