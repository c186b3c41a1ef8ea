"""What PPO logs, beside what GRPO does. Each is a mean over real tokens, or completions, of all processes."""

import torch
from accelerate import Accelerator
from torch import Tensor

from trl_ext.masked import masked_mean, masked_sums, masked_variance
from trl_ext.ppo.advantages import explained_variance
from trl_ext.ppo.token_rewards import kl_per_token
from trl_ext.ppo.value_loss import value_is_clipped


def rollout_metrics(
    log_probs: Tensor, kl: Tensor | None, values: Tensor, returns: Tensor, mask: Tensor, accelerator: Accelerator
) -> dict[str, float]:
    """Of a batch of rollouts, before any update: `kl` (per token), `kl_per_completion`, `perplexity` of own samples
    (exp of the mean −log π at the sampling temperature), `explained_variance` of the critic. All `(B, T)`.
    """
    metrics = {
        "perplexity": masked_mean(-log_probs, mask, accelerator).exp().item(),
        "explained_variance": explained_variance(values, returns, lambda x: masked_variance(x, mask, accelerator)),
    }
    if kl is not None:
        total, tokens = masked_sums(kl, mask=mask, accelerator=accelerator).tolist()
        rows = accelerator.reduce(mask.bool().any(1).float().sum(), reduction="sum").item()
        metrics |= {"kl": total / max(tokens, 1.0), "kl_per_completion": total / max(rows, 1.0)}
    return metrics


def loss_metrics(
    log_probs: Tensor, values: Tensor, error: Tensor, rollout: dict[str, Tensor], clip: float, accelerator: Accelerator
) -> dict[str, float]:
    """Of one micro-batch: `ratio` (mean ρ = π/π_old), `policy_kl` (mean ρ − 1 − log ρ, the KL to the policy that
    sampled), `value_loss` (mean of `error`), `clip_ratio/value` (share of tokens at which the critic got no gradient).
    All `(B, T)`.
    """
    clipped = value_is_clipped(values, rollout["values"], rollout["returns"], clip=clip)
    mask = rollout["tool_mask"]
    log_ratio = log_probs - rollout["old_per_token_logps"]
    terms = {
        "ratio": log_ratio.exp(),
        "policy_kl": kl_per_token(-log_ratio, torch.zeros_like(log_ratio), estimator="k3"),
        "value_loss": error,
        "clip_ratio/value": clipped,
    }
    *totals, tokens = masked_sums(*terms.values(), mask=mask, accelerator=accelerator).tolist()
    return {name: total / max(tokens, 1.0) for name, total in zip(terms, totals, strict=True)}


def mean_length(mask: Tensor, accelerator: Accelerator) -> float:
    """Own tokens per completion that has any, over all processes; mask `(B, T)`."""
    tokens, rows = mask.bool().sum(), mask.bool().any(1).sum()
    tokens, rows = accelerator.reduce(torch.stack([tokens, rows]).float(), reduction="sum").tolist()
    return tokens / max(rows, 1.0)
