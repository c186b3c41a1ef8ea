"""When what happens in a run: which prompts a stage takes, how long an Improve is, in which order it reads its rows.

A stage is a Grow and its Improves. All follows from the seed and the number of the stage, so a resumed run finds it again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trl_ext.trainer_kit.seeds import stable_seed


@dataclass(frozen=True)
class Schedule:
    """The run's plan, fixed before it begins.

    Args:
        prompts: Number of prompts in the data set.
        stage_batch_size: b, prompts per Grow, at most `prompts`.
        num_stages: Grows.
        improves_per_stage: Improves after each.
        steps_per_improve: Optimizer steps of one Improve.
        rows_per_step: Rows in one optimizer step, over all processes.
        seed: Of the run.
    """

    prompts: int
    stage_batch_size: int
    num_stages: int
    improves_per_stage: int
    steps_per_improve: int
    rows_per_step: int
    seed: int

    @property
    def improves(self) -> int:
        return self.num_stages * self.improves_per_stage

    @property
    def rows_per_improve(self) -> int:
        return self.steps_per_improve * self.rows_per_step

    def place(self, global_step: int) -> tuple[int, int]:
        """The Improve that a step belongs to: its number in the run, and in its stage."""
        improve = global_step // self.steps_per_improve
        return improve, improve % self.improves_per_stage

    def stage_rows(self, stage: int) -> NDArray[np.integer]:
        """The data set's rows that a Grow asks: b at a time through one shuffle of all after another.

        Rising, so that a stage over all prompts reads them in their order.
        """
        first, end = stage * self.stage_batch_size, (stage + 1) * self.stage_batch_size
        begins = range(first // self.prompts * self.prompts, end, self.prompts)  # of the shuffles that it takes from
        rows = [
            self._shuffle("prompts", at // self.prompts, self.prompts)[max(first - at, 0) : end - at] for at in begins
        ]
        return np.unique(np.concatenate(rows))  # at the seam of two shuffles a row may come twice

    def row_order(self, improve: int, kept: int) -> NDArray[np.integer]:
        """Which of `kept` rows each place of an Improve reads: every row once before any comes again."""
        passes = math.ceil(self.rows_per_improve / kept)
        order = np.concatenate([self._shuffle("order", f"{improve}/{p}", kept) for p in range(passes)])
        return order[: self.rows_per_improve]

    def _shuffle(self, what: str, number: int | str, size: int) -> np.ndarray:
        return np.random.default_rng(stable_seed(self.seed, what, number)).permutation(size)


def steps_per_improve(rows: int, *, epochs: float, rows_per_step: int) -> int:
    """Optimizer steps of `epochs` passes over `rows` rows.

    >>> steps_per_improve(2048, epochs=2, rows_per_step=64)
    64
    """
    return max(1, math.ceil(epochs * rows / rows_per_step))


def per_improve(decay: Callable[[int], float], schedule: Schedule, *, factor: float) -> Callable[[int], float]:
    """A multiple of the learning rate as a function of the run's step: `decay` anew in each Improve.

        rate(step) = factor^i · decay(step within its Improve)        i: number of the Improve in its stage

    >>> plan = Schedule(8, 8, 1, 2, steps_per_improve=4, rows_per_step=2, seed=0)
    >>> rate = per_improve(lambda step: 1 - step / 4, plan, factor=0.5)
    >>> [rate(step) for step in range(8)]
    [1.0, 0.75, 0.5, 0.25, 0.5, 0.375, 0.25, 0.125]
    """

    def rate(step: int) -> float:
        _, i = schedule.place(step)
        return factor**i * decay(step % schedule.steps_per_improve)

    return rate
