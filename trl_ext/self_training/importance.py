"""RAFT++'s loss: importance ratios with clipping, on positives only (arXiv:2504.11343)."""

import torch
from torch import Tensor, nn

from trl_ext.sequences.log_probs import label_log_probs
from trl_ext.sequences.training_rows import IGNORED

LARGEST = 80.0  # log ratio; exp of more than 88 is infinite in float32


def clipped_positive_loss(log_probs: Tensor, old_log_probs: Tensor, *, clip: float) -> Tensor:
    """What a kept sample's token adds to the loss.

        ρ_t = π(y_t) / π_old(y_t)          loss_t = − min(ρ_t, 1 + ε)

    PPO's clipped surrogate at advantage 1: a token that has become 1 + ε times as likely as it was when it was sampled
    is not pushed further.

    Relations: at ρ = 1, so in the first step after a Grow, the value is −1 and the gradient −∇log π(y_t): that of plain
    fine-tuning. ε → ∞ is importance sampling without a limit.

    Args:
        log_probs: log π, `(B, L)`, with gradient.
        old_log_probs: log π when the Grow began, `(B, L)`.
        clip: ε, larger trusts the old samples longer.

    Returns:
        `(B, L)`, one term per token; the caller averages over the completion's tokens.
    """
    return -_ratios(log_probs, old_log_probs).clamp(max=1 + clip)


def _ratios(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """ρ, finite: an infinite one would be clipped to a finite loss, whose gradient is 0 · ∞."""
    return torch.exp((log_probs - old_log_probs).clamp(max=LARGEST))


def importance_loss(model: nn.Module, inputs: dict[str, Tensor], *, clip: float) -> tuple[Tensor, dict[str, float]]:
    """The loss summed over a batch's completion tokens, with their mean `ratio` and the share beyond 1 + ε, `clip_ratio`."""
    log_probs, old = label_log_probs(model, inputs), inputs["old_log_probs"]
    own = inputs["labels"] != IGNORED
    ratio = _ratios(log_probs, old).detach()[own]
    metrics = {"ratio": ratio.mean().item(), "clip_ratio": (ratio > 1 + clip).float().mean().item()}
    return clipped_positive_loss(log_probs, old, clip=clip).masked_fill(~own, 0.0).sum(), metrics
