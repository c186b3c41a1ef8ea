"""How much better than expected each token was.

Shapes: `B` completions, `T` tokens. A mask is 1 on tokens that the policy wrote itself.
"""

import torch
from torch import Tensor


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al., 2016, eqs. 11–16, arXiv:1506.02438).

        δ_t = r_t + γ V_{t+1} − V_t
        A_t = δ_t + γλ A_{t+1}

    t counts the policy's own tokens: masked ones, wherever they stand, are passed over, and V and A are 0
    beyond the last. λ = 0 is the one-step TD error (low variance, biased by the critic); λ = 1 is the
    Monte-Carlo return minus V (unbiased, noisy).

    Args:
        rewards, values: `(B, T)` each.
        mask: `(B, T)`, 1 on the policy's own tokens.
        gamma: Discount per token, in (0, 1].
        lam: Bias–variance dial, in [0, 1].

    Returns:
        advantages: `(B, T)`, not normalised, 0 where masked.
        returns: Targets for the critic, advantages + values, `(B, T)`, 0 where masked.
    """
    own = mask.bool()
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.size(1))):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = torch.where(own[:, t], delta + gamma * lam * next_advantage, 0.0)
        next_advantage = torch.where(own[:, t], advantages[:, t], next_advantage)
        next_value = torch.where(own[:, t], values[:, t], next_value)
    return advantages, (advantages + values).masked_fill(~own, 0.0)


def explained_variance(values: Tensor, returns: Tensor, variance) -> float:
    """How much of the returns' variation the critic foresaw: 1 all of it, 0 none, negative worse than a constant.

        1 − Var(R − V) / Var(R)

    Args:
        values, returns: `(B, T)` each.
        variance: Maps a `(B, T)` tensor to its variance over real tokens, a scalar tensor.

    Returns:
        A float; 0 where the returns do not vary.
    """
    spread = variance(returns)
    return (1.0 - variance(returns - values) / spread).item() if spread > 0 else 0.0
