"""From completions to one score for each.

Shapes: `N` completions, `F` reward functions; NaN stands for "does not apply".
"""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trl_ext.rewards.continuations import continuation_texts


def as_continuations(completions: list, completion_ids: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list:
    """Completions as they continue their prompts, with the space that they begin with; messages are left alone."""
    return continuation_texts(completion_ids, tokenizer) if isinstance(completions[0], str) else completions


def weighted_scores(rewards: Tensor, weights: Tensor) -> Tensor:
    """Σ weight · reward over the functions that apply to a completion, `(N,)`; NaN where none with a weight does.

    >>> nan = float("nan")
    >>> weighted_scores(torch.tensor([[1.0, nan], [1.0, 2.0], [nan, nan]]), torch.tensor([1.0, 0.5]))
    tensor([1., 2., nan])

    Args:
        rewards: `(N, F)`.
        weights: `(F,)`.

    Raises:
        ValueError: If no completion has a score.
    """
    counted = weights.to(rewards.device) != 0  # what is only watched does not make a score
    unscored = rewards[:, counted].isnan().all(1)
    if unscored.all():
        raise ValueError(
            f"PPOTrainer: no reward function scored any of the {len(rewards)} completions of this batch (all returned "
            "None), so there is nothing to learn from. Make one of them apply to every batch."
        )
    return (rewards * weights.to(rewards)).nansum(1).masked_fill(unscored, torch.nan)
