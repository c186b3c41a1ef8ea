"""RLHF trainers and rewards on top of Hugging Face TRL.

Names are imported on first use, so `import trl_ext` is fast and does not load torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_MODULE_OF = {
    "EndpointGenerator": "trl_ext.self_training.endpoint_generator",
    "FileGenerator": "trl_ext.self_training.file_generator",
    "ImitationRewardConfig": "trl_ext.reward_modeling.imitation_reward_config",
    "ImitationRewardTrainer": "trl_ext.reward_modeling.imitation_reward_trainer",
    "LearnedReward": "trl_ext.rewards.learned_reward",
    "LengthIncentive": "trl_ext.rewards.length_incentive",
    "MemoryPlan": "trl_ext.low_memory.memory_plan",
    "PPOConfig": "trl_ext.ppo.ppo_config",
    "PPOTrainer": "trl_ext.ppo.ppo_trainer",
    "R3Reward": "trl_ext.rewards.r3",
    "RAFTConfig": "trl_ext.self_training.raft_config",
    "RAFTTrainer": "trl_ext.self_training.raft_trainer",
    "RelevanceReward": "trl_ext.rewards.relevance",
    "RepetitionPenalty": "trl_ext.rewards.repetition_penalty",
    "ReSTConfig": "trl_ext.self_training.rest_config",
    "ReSTTrainer": "trl_ext.self_training.rest_trainer",
    "Route": "trl_ext.rewards.routed_product",
    "RoutedProduct": "trl_ext.rewards.routed_product",
    "SelfTrainingConfig": "trl_ext.self_training.self_training_config",
    "SelfTrainingTrainer": "trl_ext.self_training.self_training_trainer",
    "SharedBase": "trl_ext.low_memory.shared_base",
    "TransformersGenerator": "trl_ext.self_training.transformers_generator",
    "VLLMGenerator": "trl_ext.self_training.vllm_generator",
    "memory_plan": "trl_ext.low_memory.memory_plan",
}

__all__ = [
    *_MODULE_OF,
]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'trl_ext' has no attribute {name!r}; its public names are {sorted(_MODULE_OF)}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
