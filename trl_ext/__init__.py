"""RLHF trainers and rewards on top of Hugging Face TRL.

Names are imported on first use, so `import trl_ext` is fast and does not load torch.
"""

from typing import TYPE_CHECKING

from trl_ext.trainer_kit.lazy import lazy_exports
from trl_ext.trainer_kit.quiet import leave_out_noise

if TYPE_CHECKING:
    from trl_ext.ai_feedback import PreferenceLabeler as PreferenceLabeler
    from trl_ext.ai_feedback.likert_reward import LikertReward as LikertReward
    from trl_ext.diagnostics import RewardDiagnostics as RewardDiagnostics
    from trl_ext.diagnostics import diagnose as diagnose
    from trl_ext.diagnostics import gaming_texts as gaming_texts
    from trl_ext.diagnostics import probe_reward as probe_reward
    from trl_ext.evaluation import Evaluation as Evaluation
    from trl_ext.evaluation import evaluate as evaluate
    from trl_ext.evaluation import score as score
    from trl_ext.generation import EndpointGenerator as EndpointGenerator
    from trl_ext.generation import EndpointLogProbs as EndpointLogProbs
    from trl_ext.generation import FileGenerator as FileGenerator
    from trl_ext.generation import TransformersGenerator as TransformersGenerator
    from trl_ext.generation import VLLMGenerator as VLLMGenerator
    from trl_ext.generation import vllm_rollouts as vllm_rollouts
    from trl_ext.memory_planning import MemoryPlan as MemoryPlan
    from trl_ext.memory_planning import memory_plan as memory_plan
    from trl_ext.ppo import PPOConfig as PPOConfig
    from trl_ext.ppo import PPOTrainer as PPOTrainer
    from trl_ext.query_types import EndpointLabeler as EndpointLabeler
    from trl_ext.query_types import LanguageModelLabeler as LanguageModelLabeler
    from trl_ext.query_types import label_query_types as label_query_types
    from trl_ext.reward_evaluation import RewardEvaluation as RewardEvaluation
    from trl_ext.reward_evaluation import best_of_n as best_of_n
    from trl_ext.reward_evaluation import evaluate_reward as evaluate_reward
    from trl_ext.reward_modeling import ImitationRewardConfig as ImitationRewardConfig
    from trl_ext.reward_modeling import ImitationRewardTrainer as ImitationRewardTrainer
    from trl_ext.reward_modeling import add_margins as add_margins
    from trl_ext.rewards import EnsembleReward as EnsembleReward
    from trl_ext.rewards import LearnedReward as LearnedReward
    from trl_ext.rewards import LengthIncentive as LengthIncentive
    from trl_ext.rewards import R3Reward as R3Reward
    from trl_ext.rewards import RelevanceReward as RelevanceReward
    from trl_ext.rewards import RepetitionPenalty as RepetitionPenalty
    from trl_ext.rewards import Route as Route
    from trl_ext.rewards import RoutedProduct as RoutedProduct
    from trl_ext.rewards import calibrate_relevance as calibrate_relevance
    from trl_ext.self_instruct import InstructionFilter as InstructionFilter
    from trl_ext.self_instruct import SelfInstruct as SelfInstruct
    from trl_ext.self_instruct import SelfInstructConfig as SelfInstructConfig
    from trl_ext.self_instruct import TaskWording as TaskWording
    from trl_ext.self_training import RAFTConfig as RAFTConfig
    from trl_ext.self_training import RAFTTrainer as RAFTTrainer
    from trl_ext.self_training import ReSTConfig as ReSTConfig
    from trl_ext.self_training import ReSTTrainer as ReSTTrainer
    from trl_ext.self_training import SelfTrainingConfig as SelfTrainingConfig
    from trl_ext.self_training import SelfTrainingTrainer as SelfTrainingTrainer
    from trl_ext.sequences.texts import characters as characters
    from trl_ext.sequences.texts import graphemes as graphemes
    from trl_ext.sequences.texts import unicode_wordpunct as unicode_wordpunct
    from trl_ext.sequences.texts import wordpunct as wordpunct
    from trl_ext.shared_base import SharedBase as SharedBase

__version__ = "0.1.0"

lazy_exports(__name__)
leave_out_noise()
