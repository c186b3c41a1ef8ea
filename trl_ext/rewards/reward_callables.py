"""Everything a user may give as a reward, turned into callables of TRL's protocol."""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from trl_ext.rewards.checked_reward import checked_reward, distinct_names, reward_name
from trl_ext.rewards.learned_reward import LearnedReward
from trl_ext.rewards.r3 import R3Reward
from trl_ext.rewards.weighted_rewards import check_weights

logger = logging.getLogger("trl_ext")
Reward = Callable[..., Any] | nn.Module | str | os.PathLike  # a function in TRL's protocol, a reward model, its path
Rewards = Reward | Sequence[Reward]


def reward_callables(
    rewards: object | list,
    tokenizers: PreTrainedTokenizerBase | list | None,
    args: TrainingArguments,
    *,
    trainer: str = "PPOTrainer",
    keep_invalid: bool = False,
) -> list[Callable]:
    """Reward functions as they are, reward models and their paths as `LearnedReward`; each checked row by row.

    What they are logged as is told apart by their places where some have one name. Their weights are checked, too.

    Args:
        rewards: One reward or a list of them.
        tokenizers: Of the reward models, in the order of `rewards`; None where it is found beside the model.
        args: The trainer's config, with `max_completion_length` (None: not known) and `reward_weights`: its device is
            where reward models run (None: where they are, or, loaded from a path, this process's).
        trainer: Its name, for messages.
        keep_invalid: As in `checked_reward`.
    """
    if rewards is None:
        return []  # which the trainer refuses
    rewards = rewards if isinstance(rewards, list | tuple) else [rewards]
    if tokenizers is None:
        tokenizers = [None] * len(rewards)
    tokenizers = tokenizers if isinstance(tokenizers, list | tuple) else [tokenizers]
    if len(tokenizers) != len(rewards):
        raise ValueError(
            f"{trainer}(reward_processing_classes=…): their number ({len(tokenizers)}) must match that of the rewards "
            f"({len(rewards)}). Give one for each, None for a function."
        )
    check_weights(args.reward_weights, len(rewards), given=f"{trainer}, reward_weights={args.reward_weights}")
    callables = [_callable(*pair, args, trainer) for pair in zip(rewards, tokenizers, strict=True)]
    names = distinct_names([reward_name(function) for function in callables])
    return [
        checked_reward(function, name=name, keep_invalid=keep_invalid)
        for function, name in zip(callables, names, strict=True)
    ]


def reward_functions(
    rewards: object | list,
    *,
    max_completion_length: int | None,
    call: str,
    weights: list[float] | None = None,
    keep_invalid: bool = False,
) -> list[Callable]:
    """The same outside of a trainer: reward models run where they are, or where a trainer would put them."""
    settings = SimpleNamespace(max_completion_length=max_completion_length, reward_weights=weights, device=None)
    return reward_callables(rewards, None, settings, trainer=call, keep_invalid=keep_invalid)


def _callable(
    reward: object, tokenizer: PreTrainedTokenizerBase | None, args: TrainingArguments, trainer: str
) -> Callable:
    if isinstance(reward, str | os.PathLike | nn.Module):
        return LearnedReward(reward, tokenizer, device=args.device)
    if not callable(reward):
        raise ValueError(
            f"{trainer}(reward_funcs=…): {reward!r} is neither a function nor a reward model nor the path of one."
        )
    if not isinstance(reward, R3Reward) or args.max_completion_length is None:
        return reward
    if reward.max_completion_length is None:
        logger.info("R3Reward: L = %d, max_completion_length of %s.", args.max_completion_length, trainer)
        return dataclasses.replace(reward, max_completion_length=args.max_completion_length)
    if reward.max_completion_length != args.max_completion_length:
        raise ValueError(
            f"R3Reward(max_completion_length={reward.max_completion_length}) in a trainer with "
            f"max_completion_length={args.max_completion_length}: the two scale one score, so give both the same, or "
            "leave R3Reward's out."
        )
    return reward
