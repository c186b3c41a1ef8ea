"""What decides a run of PPO besides its config, and what of it all cannot change on the way."""

from typing import Any

from datasets import Dataset
from trl import GRPOTrainer

from trl_ext.ppo.rollout_state import BATCHING
from trl_ext.rewards.checked_reward import reward_name
from trl_ext.rewards.reward_fingerprints import reward_settings
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.fingerprints import data_fingerprint

FIXED = dict.fromkeys((*BATCHING, "gradient_accumulation_steps"), "rollouts and the order of prompts are cut to it")
FIXED |= {"value_model": "the critic goes on from its own weights"}


def ppo_record(trainer: GRPOTrainer, text: Dataset | None) -> dict[str, Any]:
    """Data, tokenizer, rewards, and who samples; `text`: the `ptx_dataset`."""
    return {
        "train_dataset": data_fingerprint(trainer.train_dataset),
        "ptx_dataset": data_fingerprint(text),
        "tokenizer": tokenizer_fingerprint(trainer._tokenizer),
        "reward_funcs": [reward.__name__ for reward in trainer.reward_funcs],
        "reward_settings": reward_settings(trainer.reward_funcs),
        "generator": None if trainer.rollout_func is None else sampler_name(trainer),
    }


def sampler_name(trainer: GRPOTrainer) -> str:
    """Who samples: a function's name, or an object's class."""
    if trainer.rollout_func is not None:
        return reward_name(trainer.rollout_func)
    return "vLLM" if trainer.use_vllm else "the policy"
