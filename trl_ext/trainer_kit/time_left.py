"""How fast a run is, and how long it still takes, said once it is known."""

import time
from collections.abc import Callable, Mapping

from tqdm.auto import tqdm
from transformers import TrainerCallback


class TimeLeft(TrainerCallback):
    """Says tokens per second and the time left, by phase, after some steps: of PPO two rollouts, of RAFT one stage.

    Args:
        after: How many steps.
        phases: Seconds by phase of the run so far.
        say: Who says it; None: a line of its own.
        tokens: How many were read so far; None: as the trainer's state has it.
    """

    def __init__(
        self,
        after: int,
        phases: Callable[[], Mapping[str, float]],
        say: Callable[[str], None] = tqdm.write,
        *,
        tokens: Callable[[], float] | None = None,
    ):
        self.after, self.phases, self.say, self.tokens = after, phases, say, tokens
        self.said = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun, self.first, self.first_tokens = time.monotonic(), state.global_step, self._read(state)

    def on_step_end(self, args, state, control, **kwargs):
        done, left = state.global_step - self.first, state.max_steps - state.global_step
        if self.said or done < self.after or left <= 0 or not state.is_world_process_zero:
            return
        self.said = True
        tokens = self._read(state) - self.first_tokens
        self.say(estimate(time.monotonic() - self.begun, done, left, self.phases(), tokens or None))

    def _read(self, state) -> float:
        return state.num_input_tokens_seen if self.tokens is None else self.tokens()


def estimate(seconds: float, done: int, left: int, phases: Mapping[str, float], tokens: float | None) -> str:
    """One line.

    >>> estimate(60.0, 4, 396, {"generate": 30.0, "train": 15.0}, 12_000.0)
    '15 s per step, 200 tokens/s; about 1 h 39 min left (generate 67%, train 33%)'
    """
    total = sum(phases.values())
    shares = ", ".join(f"{phase} {spent / total:.0%}" for phase, spent in phases.items()) if total else ""
    speed = "" if tokens is None else f", {tokens / seconds:,.0f} tokens/s"
    parts = f" ({shares})" if len(phases) > 1 and shares else ""
    return f"{seconds / done:.3g} s per step{speed}; about {duration(seconds / done * left)} left{parts}"


def duration(seconds: float) -> str:
    """In the two largest units.

    >>> duration(59), duration(3_700), duration(200_000)
    ('59 s', '1 h 2 min', '2 d 8 h')
    """
    minutes, hours = round(seconds / 60), round(seconds / 3600)  # each rounded once, then divided
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"
