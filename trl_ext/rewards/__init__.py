"""Score completions: the factors of R³ and their routed product, learned reward models, and the checks that wrap every
reward."""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports

if TYPE_CHECKING:
    from trl_ext.rewards.encoder import mean_pooled as mean_pooled
    from trl_ext.rewards.ensemble_reward import EnsembleReward as EnsembleReward
    from trl_ext.rewards.learned_reward import LearnedReward as LearnedReward
    from trl_ext.rewards.length_incentive import LengthIncentive as LengthIncentive
    from trl_ext.rewards.r3 import R3Reward as R3Reward
    from trl_ext.rewards.relevance import RelevanceReward as RelevanceReward
    from trl_ext.rewards.relevance_calibration import RelevanceCalibration as RelevanceCalibration
    from trl_ext.rewards.relevance_calibration import calibrate_relevance as calibrate_relevance
    from trl_ext.rewards.repetition_penalty import RepetitionPenalty as RepetitionPenalty
    from trl_ext.rewards.routed_product import Route as Route
    from trl_ext.rewards.routed_product import RoutedProduct as RoutedProduct

lazy_exports(__name__)
