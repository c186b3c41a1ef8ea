"""RAFT++'s loss: importance ratios with clipping, on positives only (arXiv:2504.11343)."""

import torch
from torch import Tensor


def clipped_positive_loss(log_probs: Tensor, old_log_probs: Tensor, *, clip: float) -> Tensor:
    """What a kept sample's token adds to the loss.

        ρ_t = π(y_t) / π_old(y_t)          loss_t = − min(ρ_t, 1 + ε)

    PPO's clipped surrogate at advantage 1: a token that has become 1 + ε times as likely as it was when it was sampled
    is not pushed further. At ρ = 1 the gradient is that of plain fine-tuning.

    Args:
        log_probs: log π, `(B, L)`, with gradient.
        old_log_probs: log π when the Grow began, `(B, L)`.
        clip: ε, larger trusts the old samples longer.

    Returns:
        `(B, L)`, one term per token; the caller averages over the completion's tokens.
    """
    return -torch.exp(log_probs - old_log_probs).clamp(max=1 + clip)
