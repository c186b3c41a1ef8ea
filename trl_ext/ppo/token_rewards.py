"""What each token earns: the price of leaving the reference, and the completion's score at its end.

Shapes: `B` completions, `T` tokens. A mask is 1 on tokens that the policy wrote itself.
"""

from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k3"]


def kl_per_token(log_probs: Tensor, ref_log_probs: Tensor, *, estimator: KLEstimator = "k1") -> Tensor:
    """One-sample estimates of KL(π ‖ π_ref) at each sampled token, in nats (Schulman, 2020).

        k1 = log π − log π_ref          unbiased, may be negative
        k3 = e^{−k1} − 1 + k1           unbiased, never negative, lower variance

    Args:
        log_probs, ref_log_probs: Log-probability of the sampled tokens, `(B, T)`.
        estimator: `"k1"` or `"k3"`.
    """
    k1 = log_probs - ref_log_probs
    return k1 if estimator == "k1" else torch.expm1(-k1) + k1


def last_own_token(mask: Tensor) -> Tensor:
    """`(B, T)`, True on the last token of each row whose mask is 1; a row without any has no True.

    >>> last_own_token(torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 0]])).int().tolist()
    [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    """
    own = mask.bool()
    own_after = own.flip(1).cumsum(1).flip(1)  # own tokens from here on, this one included
    return own & (own_after == 1)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Reward of each token (Ziegler et al., 2019, arXiv:1909.08593; InstructGPT, arXiv:2203.02155).

        reward_t = −β · kl_t + score · 1[t is the last own token]

    KL is charged where it arises; the score arrives once, on a token that the policy chose, never on a pad.

    Args:
        scores: One number per completion, `(B,)`.
        kl: Estimates from `kl_per_token`, `(B, T)`; anything where masked.
        mask: `(B, T)`, 1 on the policy's own tokens.
        beta: Price of one nat of KL, in units of score. 0: free.

    Returns:
        `(B, T)`, 0 where masked.
    """
    rewards = torch.where(last_own_token(mask), scores.unsqueeze(1), 0.0) - beta * kl
    return rewards.masked_fill(~mask.bool(), 0.0)
