"""Everything a user may give as a reward, turned into callables of TRL's protocol."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from trl_ext.rewards.checked_reward import checked_reward
from trl_ext.rewards.learned_reward import LearnedReward


def reward_callables(
    rewards: object | list, tokenizers: PreTrainedTokenizerBase | list | None = None, *, device: torch.device
) -> list[Callable]:
    """Reward functions as they are, reward models and their paths as `LearnedReward`; each checked row by row.

    Args:
        rewards: One reward or a list of them.
        tokenizers: Of the reward models, in the order of `rewards`; None where it is found beside the model.
        device: Where reward models run.
    """
    rewards = rewards if isinstance(rewards, list | tuple) else [rewards]
    tokenizers = tokenizers if isinstance(tokenizers, list | tuple) else [tokenizers] * len(rewards)
    if len(tokenizers) != len(rewards):
        raise ValueError(
            f"PPOTrainer(reward_processing_classes=…): {len(tokenizers)} tokenizers came for {len(rewards)} rewards: "
            "expected one each, None for a function."
        )
    return [checked_reward(_callable(*pair, device)) for pair in zip(rewards, tokenizers, strict=True)]


def _callable(reward: object, tokenizer: PreTrainedTokenizerBase | None, device: torch.device) -> Callable:
    if isinstance(reward, str | nn.Module):
        return LearnedReward(reward, tokenizer, device=device)
    if not callable(reward):
        raise ValueError(
            f"PPOTrainer(reward_funcs=…): {reward!r} is neither a function nor a reward model nor the path of one."
        )
    return reward
