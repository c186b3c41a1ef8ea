"""Is a reward right? Accuracy on pairs with its interval, calibration, length, and how one reward differs from another."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.reward_evaluation.evaluating_rewards import evaluate_reward as evaluate_reward
    from trl_ext.reward_evaluation.shown_findings import RewardEvaluation as RewardEvaluation

lazy_exports(__name__)
