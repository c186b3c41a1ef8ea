"""Findings of rewards, to look at."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike

from rich.console import Console

from trl_ext.reward_evaluation.reward_findings import Findings
from trl_ext.reward_evaluation.reward_pictures import draw
from trl_ext.reward_evaluation.reward_tables import rewards_tables
from trl_ext.rewards.checked_reward import distinct_names
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.option_rules import Rule


class RewardEvaluation(Findings):
    __doc__ = Findings.__doc__

    def print(self, *others: Findings, worst: int = 3, console: Console | None = None) -> None:
        """A table with a column for each reward, of the others' differences from this one, and of the worst pairs."""
        worst = checked("RewardEvaluation.print", "worst", worst, int, Rule(0))
        for table in rewards_tables(self._beside(others, "print"), worst=worst):
            (console or Console(highlight=False)).print(table)

    def save_png(self, path: str | PathLike, *others: Findings) -> None:
        """Draw reliability, score difference against length difference, and accuracy by group, into a PNG file."""
        draw(path, self._beside(others, "save_png"))

    def _beside(self, others: Sequence[Findings], method: str) -> list[Findings]:
        for other in others:
            self.check_comparable(other, call=f"RewardEvaluation.{method}")
        return _told_apart([self, *others])


def _told_apart(evaluations: list[Findings]) -> list[Findings]:
    names = distinct_names([each.name for each in evaluations])
    return [replace(each, name=name) for each, name in zip(evaluations, names, strict=True)]
