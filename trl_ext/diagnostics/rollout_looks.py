"""Looks at the rollouts of TRL's GRPO and RLOO and of PPO, whose rewards all pass through one method."""

import functools
from collections.abc import Callable
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

from trl_ext.diagnostics.gold_reward import GoldReward
from trl_ext.diagnostics.look import Look
from trl_ext.rewards.checked_reward import distinct_names
from trl_ext.rewards.routed_product import ByRow, watched_factors
from trl_ext.sequences.continuations import as_continuations
from trl_ext.trainer_kit.processes import together
from trl_ext.trainer_kit.trl_versions import end_tokens

SEAM = "_calculate_rewards"


class RolloutLooks:
    """Looks at a batch of rollouts as it has been scored, in all processes; nothing that training sees is changed.

    Args:
        trainer: A GRPOTrainer, which PPOTrainer is, or an RLOOTrainer.
        gold: Of what training does not see.
        every: Batches of rollouts from one look to the next.
        took: Given each look, in the main process; elsewhere None.
    """

    def __init__(
        self,
        trainer: GRPOTrainer | RLOOTrainer,
        gold: GoldReward | None,
        every: int,
        took: Callable[[Look | None], None],
    ):
        self.trainer, self.gold, self.every, self.took = trainer, gold, every, took
        self.rollouts = 0
        self.rows_of = trainer.train_dataset

    def begin(self) -> None:
        """Look on, until `end`."""
        self.end()
        scored = getattr(self.trainer, SEAM)

        @functools.wraps(scored)
        def watched(inputs, prompts, completions, completion_ids_list):
            if not self.trainer.model.training:
                return scored(inputs, prompts, completions, completion_ids_list)
            with watched_factors() as factors:
                rewards = scored(inputs, prompts, completions, completion_ids_list)
            if self.rollouts % self.every == 0:
                self._look(inputs, prompts, completions, completion_ids_list, rewards, factors)
            self.rollouts += 1
            return rewards

        setattr(self.trainer, SEAM, watched)

    def end(self) -> None:
        vars(self.trainer).pop(SEAM, None)

    def _look(
        self,
        inputs: list[dict],
        prompts: list,
        completions: list,
        ids: list[list[int]],
        rewards: Tensor,
        seen: list[ByRow],
    ) -> None:
        ends = end_tokens(self.trainer)
        ended = [bool(row) and row[-1] in ends for row in ids]
        mine = {"prompts": prompts, "completions": completions, "lengths": [len(row) for row in ids], "ended": ended}
        factors = _named(seen)
        if self.gold is not None:
            with together(self.trainer.accelerator):
                mine["gold"] = self._gold(inputs, prompts, completions, ids, ended)
        mine, factors = _joined(gather_object([mine])), _joined(gather_object([factors]))
        scores = self._scores(rewards, mine["ended"])
        gold = mine.pop("gold", None)
        if gold is not None and not self.gold.check(gold, scores):  # in all processes, so that all stop
            gold = None
        if not self.trainer.accelerator.is_main_process:
            return self.took(None)
        factors = self._of_rewards(rewards) | factors
        self.took(Look(self.trainer.state.global_step, scores=scores, factors=factors, gold=gold, **mine))

    def _of_rewards(self, rewards: Tensor) -> ByRow:
        """Single rewards, where there are several."""
        names = self.trainer.reward_func_names
        if len(names) == 1:
            return {}
        columns = zip(*rewards.tolist(), strict=True)
        return {name: [_or_none(value) for value in values] for name, values in zip(names, columns, strict=True)}

    def _gold(self, inputs: list[dict], prompts: list, completions: list, ids: list, ended: list[bool]) -> list:
        names = [name for name in inputs[0] if name not in ("prompt", "completion", "completion_ids")]
        columns = {name: [row.get(name) for row in inputs] for name in names}
        tokenizer = getattr(self.trainer.processing_class, "tokenizer", self.trainer.processing_class)
        columns |= {
            "prompts": prompts,
            "completions": as_continuations(completions, ids, tokenizer),
            "completion_ids": ids,
            "completion_ended": ended,
        }
        return self.gold.scores(columns)

    def _scores(self, rewards: Tensor, ended: list[bool]) -> list[float | None]:
        """Σ weight · reward, less PPO's penalty for a missing end; None where no reward with a weight applies."""
        weights = self.trainer.reward_weights.tolist()
        penalty = vars(self.trainer.args).get("missing_eos_penalty") or 0.0
        scores = []
        for row, end in zip(rewards.tolist(), ended, strict=True):
            counted = [w * r for w, r in zip(weights, row, strict=True) if w != 0 and r == r]
            scores.append(sum(counted) - penalty * (not end) if counted else None)
        return scores


def _joined(parts: list[dict[str, list]]) -> dict[str, list]:
    """The columns of all processes, in their order."""
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def _named(factors: list[ByRow]) -> ByRow:
    """Of several products, the factors told apart by their places."""
    pairs = [pair for of_product in factors for pair in of_product.items()]
    return dict(zip(distinct_names([name for name, _ in pairs]), (values for _, values in pairs), strict=True))


def _or_none(value: Any) -> float | None:
    return value if value == value else None
