"""What PPO logs, beside what GRPO does."""

from collections.abc import MutableSequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from trl_ext.ppo.advantages import explained_variance
from trl_ext.ppo.sampling_gap import Mean, gap_terms, means
from trl_ext.ppo.token_rewards import kl_per_token
from trl_ext.ppo.value_loss import value_is_clipped
from trl_ext.trainer_kit.masked import masked_mean, masked_sums, masked_variance


@dataclass(frozen=True)
class PPOMetrics:
    """Takes down PPO's numbers, each a mean over real tokens, or completions, of all processes.

    Args:
        accelerator: Whose processes share the means.
        logged: Where to: GRPOTrainer's lists by name, of training or of evaluation, whose means it logs.
        table: The column of advantages in its table of completions.
    """

    accelerator: Accelerator
    logged: dict[str, list[float]]
    table: MutableSequence[float]

    def add(self, numbers: dict[str, float]) -> dict[str, float]:
        """Take down numbers by name, and return them."""
        for name, number in numbers.items():
            self.logged[name].append(number)
        return numbers

    def of_scores(self, scores: Tensor, cut: Tensor) -> dict[str, float]:
        """Of a batch of rollouts: `score`, `rows_unscored`, `completions/eos_ratio` (share that ended themselves).

        Args:
            scores: Of all processes, `(N,)`, NaN where there is none.
            cut: Whether each completion ended for lack of room, `(N,)`.
        """
        numbers = {"score": scores.nanmean().item(), "rows_unscored": scores.isnan().sum().item()}
        return self.add(numbers | {"completions/eos_ratio": 1.0 - cut.float().mean().item()})

    def of_rollout(
        self, log_probs: Tensor, kl: Tensor | None, values: Tensor, returns: Tensor, mask: Tensor
    ) -> dict[str, float]:
        """Of a batch of rollouts, before any update: `kl` (per token), `kl_per_completion`, `own_length` (tokens to learn
        from per completion that has any), `perplexity` of own samples (exp of the mean −log π at the sampling
        temperature), `explained_variance` of the critic. All `(B, T)`.
        """
        over = {"mask": mask, "accelerator": self.accelerator}
        numbers = {
            "perplexity": masked_mean(-log_probs, **over).exp().item(),
            "explained_variance": explained_variance(values, returns, lambda x: masked_variance(x, **over)),
        }
        if kl is not None:
            total, tokens = masked_sums(kl, **over).tolist()
            rows = max(self.accelerator.reduce(mask.bool().any(1).float().sum(), reduction="sum").item(), 1.0)
            numbers |= {"kl": total / max(tokens, 1.0), "kl_per_completion": total / rows, "own_length": tokens / rows}
        return self.add(numbers)

    def of_sampling(
        self, sampled: Tensor, log_probs: Tensor, ref_log_probs: Tensor | None, mask: Tensor, *, cap: float | None
    ) -> dict[str, Mean]:
        """Of a batch of rollouts whose sampler gave log-probabilities: `sampling_kl`; with a cap of weights, their mean
        `sampling_weight`, and `sampling_weight_capped`, the share of tokens that it lowered. All `(B, T)`.

        Returns:
            The means of all `gap_terms`, over the tokens of which it gave one; nothing where it gave none.
        """
        known = mask.bool() & ~sampled.isnan()
        gap = means(gap_terms(sampled, log_probs, ref_log_probs, cap=cap), known, self.accelerator)
        self.add({name: mean.value for name, mean in gap.items() if name.startswith("sampling_")})
        return gap

    @torch.no_grad()
    def of_loss(
        self, log_probs: Tensor, values: Tensor, error: Tensor, rollout: dict[str, Tensor], *, clip: float
    ) -> dict[str, float]:
        """Of one micro-batch: `ratio` (mean ρ = π/π_old), `policy_kl` (mean ρ − 1 − log ρ, the KL to the policy that
        sampled), `value_loss` (mean of `error`), `clip_ratio/value` (share of tokens at which the critic got no
        gradient). All `(B, T)`.
        """
        log_ratio = log_probs - rollout["old_per_token_logps"]
        terms = {
            "ratio": log_ratio.exp(),
            "policy_kl": kl_per_token(-log_ratio, torch.zeros_like(log_ratio), estimator="k3"),
            "value_loss": error,
            "clip_ratio/value": value_is_clipped(values, rollout["values"], rollout["returns"], clip=clip),
        }
        *totals, tokens = masked_sums(
            *terms.values(), mask=rollout["tool_mask"], accelerator=self.accelerator
        ).tolist()
        return self.add({name: total / max(tokens, 1.0) for name, total in zip(terms, totals, strict=True)})

    def replace_groups(self, advantages: Tensor, mask: Tensor) -> None:
        """Take back what GRPO has logged of group advantages, last; its table gets the rows' means. All `(B, T)`."""
        self.logged.pop("frac_reward_zero_std", None)
        means = (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
        rows = self.accelerator.gather(means).tolist()[-len(self.table) :]
        for i, mean in enumerate(rows, start=len(self.table) - len(rows)):
            self.table[i] = mean
