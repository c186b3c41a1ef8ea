"""Findings of rewards, to look at."""

from dataclasses import replace
from os import PathLike

from rich.console import Console

from trl_ext.reward_evaluation.reward_findings import Findings
from trl_ext.reward_evaluation.reward_pictures import draw
from trl_ext.reward_evaluation.reward_tables import rewards_tables
from trl_ext.rewards.checked_reward import distinct_names


class RewardEvaluation(Findings):
    __doc__ = Findings.__doc__

    def print(self, *others: Findings, worst: int = 3, console: Console | None = None) -> None:
        """A table with a column for each reward, of the others' differences from this one, and of the worst pairs."""
        for table in rewards_tables(_told_apart([self, *others]), worst=worst):
            (console or Console(highlight=False)).print(table)

    def save_png(self, path: str | PathLike, *others: Findings) -> None:
        """Draw reliability, score difference against length difference, and accuracy by group, into a PNG file."""
        draw(path, _told_apart([self, *others]))


def _told_apart(evaluations: list[Findings]) -> list[Findings]:
    names = distinct_names([each.name for each in evaluations])
    return [replace(each, name=name) for each, name in zip(evaluations, names, strict=True)]
