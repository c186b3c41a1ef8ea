"""Draws tokens: each completion's stream of uniforms, the filters of the logits, the inverse distribution function."""

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trl_ext.generation.protocol import Sampling


def seeded_uniforms(seed: int, count: int) -> Tensor:
    """The stream of one completion, `(count,)` in [0, 1): one number for each token that it may get.

    >>> seeded_uniforms(7, 3).tolist() == seeded_uniforms(7, 5)[:3].tolist()
    True
    """
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inverse_cdf(scores: Tensor, uniforms: Tensor) -> Tensor:
    """The token i of each row with F_{i−1} ≤ u < F_i, where F is the running sum of softmax(scores).

    A token of probability 0 has an empty interval, also at the end: u ≤ 1 − 2⁻⁵³, so u·F_V < F_V however it is rounded.

    Args:
        scores: Filtered logits, `(B, V)`, −∞ where a token is ruled out.
        uniforms: u, `(B,)`, float64 in [0, 1).
    """
    device = scores.device
    if torch.are_deterministic_algorithms_enabled():  # CUDA's running sum is not one of them, and refuses
        scores, uniforms = scores.cpu(), uniforms.cpu()
    sums = scores.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    total = sums[:, -1:]
    if total.isnan().any():
        raise ValueError(
            "TransformersGenerator.generate: the model's logits are not finite, so there is nothing to sample from. "
            "Check its weights, and load it in bfloat16 or float32 if they are float16."
        )
    return torch.searchsorted(sums, uniforms[:, None] * total, right=True).squeeze(1).to(device)


def logits_filters(sampling: Sampling) -> LogitsProcessorList:
    """transformers' own filters, in the order in which its `generate` applies them; none that would do nothing."""
    filters = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        filters.append(RepetitionPenaltyLogitsProcessor(penalty=float(sampling.repetition_penalty)))
    if sampling.temperature == 0:
        return filters
    if sampling.temperature != 1:
        filters.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(TopPLogitsWarper(float(sampling.top_p)))
    if sampling.min_p:
        filters.append(MinPLogitsWarper(sampling.min_p))
    return filters
