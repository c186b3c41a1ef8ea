"""Is a reward right, and how far can it be trusted? Accuracy on pairs, calibration, length; the best of n, and where gold turns."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.reward_evaluation.best_curve import BestOfNCurve as BestOfNCurve
    from trl_ext.reward_evaluation.best_picture import draw_curves as draw_curves
    from trl_ext.reward_evaluation.best_samples import BestOfN as BestOfN
    from trl_ext.reward_evaluation.best_samples import best_of_n as best_of_n
    from trl_ext.reward_evaluation.curve_of_scores import best_of_n_curve as best_of_n_curve
    from trl_ext.reward_evaluation.evaluating_rewards import evaluate_reward as evaluate_reward
    from trl_ext.reward_evaluation.overoptimization import Overoptimization as Overoptimization
    from trl_ext.reward_evaluation.overoptimization import fit_best_of_n as fit_best_of_n
    from trl_ext.reward_evaluation.overoptimization import fit_checkpoints as fit_checkpoints
    from trl_ext.reward_evaluation.shown_findings import RewardEvaluation as RewardEvaluation

lazy_exports(__name__)
