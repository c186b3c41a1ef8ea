"""Scoring many completions of one prompt: what they have in common is read once."""

from collections.abc import Hashable
from itertools import groupby

import torch
from torch import nn
from transformers import DynamicCache

from trl_ext.sequences.common_prefix import LEAST_SAVED, common_length
from trl_ext.sequences.padding import right_padded
from trl_ext.trainer_kit.passes import behind, under_adapter


def groups_to_share(keys: list[Hashable], ids: list[list[int]]) -> list[tuple[list[int], int]]:
    """Which sequences have so long a beginning in common that it is read once: their numbers, and its length.

    At least two tokens of each sequence are left to be read behind it: where the pad token is the end token, the model
    takes the last but one for the last.

    >>> groups_to_share(["a", "a", "b"], [[1] * 300 + [2], [1] * 300 + [3, 4], [5]])
    [([0, 1], 299)]

    Args:
        keys: What tells prompts apart; equal ones stand together.
        ids: Tokens of prompt and completion, one list each.
    """
    found = []
    for _, group in groupby(range(len(keys)), key=keys.__getitem__):
        rows = list(group)
        common = common_length([ids[row][:-2] for row in rows])
        if common * (len(rows) - 1) >= LEAST_SAVED:
            found.append((rows, common))
    return found


def score_behind_prefix(
    module: nn.Module, ids: list[list[int]], common: int, *, pad_token_id: int, batch_size: int
) -> list[float]:
    """One score per sequence; the first `common` tokens, which all share, are read once per batch.

    Args:
        module: A sequence-classification model with one label, in eval mode.
        ids: Sequences longer than `common`.
        common: Tokens in common, at least 1.
        pad_token_id: With which the model finds the last real token.
        batch_size: Sequences per pass.
    """
    model, scores = under_adapter(module), []
    device = next(model.parameters()).device
    for start in range(0, len(ids), batch_size):
        rows = [row[common:] for row in ids[start : start + batch_size]]
        cache = DynamicCache(config=model.config)
        model.base_model(torch.tensor([ids[0][:common]], device=device), **behind(cache, model.base_model))
        cache.batch_repeat_interleave(len(rows))
        inputs, mask = right_padded(rows, pad_token_id, device=device)
        whole = torch.cat([mask.new_ones(len(rows), common), mask], dim=1)
        output = model(inputs, attention_mask=whole, **behind(cache, model))
        scores += output.logits[:, 0].float().tolist()
    return scores
