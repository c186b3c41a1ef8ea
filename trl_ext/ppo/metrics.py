"""What PPO logs, beside what GRPO does. Each is a mean over real tokens, or completions, of all processes."""

import torch
from accelerate import Accelerator
from torch import Tensor

from trl_ext.ppo.advantages import explained_variance
from trl_ext.ppo.token_rewards import kl_per_token
from trl_ext.ppo.value_loss import value_is_clipped
from trl_ext.trainer_kit.masked import masked_mean, masked_sums, masked_variance


def rollout_metrics(
    log_probs: Tensor, kl: Tensor | None, values: Tensor, returns: Tensor, mask: Tensor, accelerator: Accelerator
) -> dict[str, float]:
    """Of a batch of rollouts, before any update: `kl` (per token), `kl_per_completion`, `own_length` (tokens to learn from
    per completion that has any), `perplexity` of own samples (exp of the mean −log π at the sampling temperature),
    `explained_variance` of the critic. All `(B, T)`.
    """
    metrics = {
        "perplexity": masked_mean(-log_probs, mask, accelerator).exp().item(),
        "explained_variance": explained_variance(values, returns, lambda x: masked_variance(x, mask, accelerator)),
    }
    if kl is not None:
        total, tokens = masked_sums(kl, mask=mask, accelerator=accelerator).tolist()
        rows = max(accelerator.reduce(mask.bool().any(1).float().sum(), reduction="sum").item(), 1.0)
        metrics |= {"kl": total / max(tokens, 1.0), "kl_per_completion": total / rows, "own_length": tokens / rows}
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


class PPOMetrics:
    """Mixin before GRPOTrainer: what is logged, and what is set by it."""

    def _record(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)

    def _replace_group_metrics(self, advantages: Tensor, mask: Tensor) -> None:
        """Take back what the parent has logged of group advantages; its table of completions gets the rows' means."""
        self._metrics["train" if self.model.training else "eval"].pop("frac_reward_zero_std", None)
        means = (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
        table = self._logs["advantages"]
        rows = self.accelerator.gather(means).tolist()[-len(table) :]
        for i, mean in enumerate(rows, start=len(table) - len(rows)):
            table[i] = mean
