"""From completions to one score for each.

Shapes: `N` completions, `F` reward functions; NaN stands for "does not apply".
"""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def as_continuations(completions: list, completion_ids: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list:
    """Completions as they continue their prompts, with the space that they begin with; messages are left alone.

    Decoded by itself, a text loses its first space to tokenizers such as Llama-2's, so that a reward model would read
    "…queen.She" where it was trained on "…queen. She". So each is decoded behind another word, which is then cut off.
    """
    if not isinstance(completions[0], str):
        return completions
    word = tokenizer("a", add_special_tokens=False)["input_ids"]
    texts = tokenizer.batch_decode([word, *(word + list(ids) for ids in completion_ids)], skip_special_tokens=True)
    return [text.removeprefix(texts[0]) for text in texts[1:]]


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
