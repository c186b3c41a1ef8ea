"""Looks at the Grows of RAFT and ReST, which lie on disk with all their scores."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from trl_ext.diagnostics.gold_reward import GoldReward, products
from trl_ext.diagnostics.look import Look
from trl_ext.diagnostics.saved_completions import look_of, of_dataset, with_factors
from trl_ext.rewards.weighted_rewards import Scorer
from trl_ext.trainer_kit.processes import from_main

SAMPLES = 1024  # of a Grow that are looked at, of whole prompts


@runtime_checkable
class Grows(Protocol):
    """A trainer that samples in stages, as RAFT's and ReST's do."""

    grower: Any
    table: Any


class GrowLooks:
    """Looks at each Grow once it is on disk: the main process reads it, and gives all of them what it saw.

    Args:
        trainer: A RAFTTrainer, a ReSTTrainer or a SelfTrainingTrainer.
        gold: Of what training does not see.
        every: Grows from one look to the next.
        took: Given each look, in all processes.
    """

    def __init__(self, trainer: Grows, gold: GoldReward | None, every: int, took: Callable[[Look], None]):
        self.trainer, self.gold, self.every, self.took = trainer, gold, every, took
        self.stage = None
        self.rows_of = trainer.grower.prompts.known

    def begin(self) -> None:
        self.stage = None

    def end(self) -> None:
        pass

    def step_begins(self) -> None:
        """The first step of a stage comes when its Grow is complete."""
        stage = self.trainer.table.improves[-1].stage if self.trainer.table.improves else None
        if stage is None or stage == self.stage:
            return
        self.stage = stage
        if stage % self.every == 0:
            self.took(from_main(self.trainer.accelerator, lambda: self._look(stage)))

    def _look(self, stage: int) -> Look:
        grower = self.trainer.grower
        rows = whole_prompts(pq.read_table(grower.files(stage).finished)).to_pylist()
        rows = [row for row in rows if row["sample"] >= 0]  # the data set's own are no samples
        columns = {"prompts": [row["prompt"] for row in rows], "completions": [row["completion"] for row in rows]}
        columns |= {"completion_ids": [row["completion_ids"] for row in rows]}
        columns |= {"completion_ended": [row["ended"] for row in rows]}
        columns |= of_dataset(grower.stage_rows(stage).dataset, rows)
        look = with_factors(look_of(rows, stage), products(_rewards(grower.scorer)), columns)
        if self.gold is not None:
            gold = self.gold.scores(columns)
            look.gold = gold if self.gold.check(gold, look.scores) else None
        return look


def whole_prompts(table: pa.Table, *, most: int = SAMPLES) -> pa.Table:
    """Of a Grow so many samples at most, of prompts that are evenly chosen, each with all of its samples."""
    if len(table) <= most:
        return table
    rows = table["row"].unique().to_pylist()
    count = max(1, most * len(rows) // len(table))
    chosen = [rows[i * len(rows) // count] for i in range(count)]
    return table.filter(pa.compute.is_in(table["row"], pa.array(chosen, table["row"].type)))


def _rewards(scorer: Scorer) -> list[Callable]:
    return [reward for reward, weight in zip(scorer.rewards, scorer.weights, strict=True) if weight != 0]
