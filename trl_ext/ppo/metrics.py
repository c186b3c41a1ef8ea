"""What PPO logs, beside what GRPO does. Each is a mean over real tokens, or completions, of all processes."""

from accelerate import Accelerator
from torch import Tensor

from trl_ext.masked import masked_mean, masked_sums, masked_variance
from trl_ext.ppo.advantages import explained_variance
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
    """Of one micro-batch: `ratio` (mean π/π_old), `value_loss` (mean of `error`), `clip_ratio/value` (share of tokens
    at which the critic got no gradient). All `(B, T)`.
    """
    clipped = value_is_clipped(values, rollout["values"], rollout["returns"], clip=clip)
    mask = rollout["tool_mask"]
    ratio, value_loss, value_clipped, tokens = masked_sums(
        (log_probs - rollout["old_per_token_logps"]).exp(), error, clipped, mask=mask, accelerator=accelerator
    ).tolist()
    names = ("ratio", "value_loss", "clip_ratio/value")
    return {
        name: total / max(tokens, 1.0) for name, total in zip(names, (ratio, value_loss, value_clipped), strict=True)
    }
