"""The walk of a completion: GRPO has sampled and scored it; what of that PPO's loss learns from.

Shapes: `B` completions of `T` tokens, `N` completions in all processes. A mask is 1 on tokens to learn from.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from trl_ext.ppo.advantages import generalized_advantages
from trl_ext.ppo.metrics import PPOMetrics
from trl_ext.ppo.ppo_config import PPOConfig
from trl_ext.ppo.rollout_state import RolloutState
from trl_ext.ppo.sampling_gap import known_log_probs, sampling_weights
from trl_ext.ppo.token_rewards import kl_per_token, token_rewards
from trl_ext.rewards.weighted_rewards import weighted_scores
from trl_ext.trainer_kit.finite_findings import check_rows
from trl_ext.trainer_kit.masked import masked_whiten


@dataclass
class CompletionWalk:
    """Adds to a rollout of GRPO's what each token was worth.

    Args:
        args: The trainer's config.
        accelerator: Whose processes share statistics and means.
        state: What is kept over rollouts: it scales scores and prices KL, and is moved by both.
        reward_weights: One per reward function.
        sampler: Who samples, for messages.
    """

    args: PPOConfig
    accelerator: Accelerator
    state: RolloutState
    reward_weights: Tensor
    sampler: str = "the sampler"

    def __call__(
        self,
        rollout: dict[str, Tensor],
        rewards: Tensor,
        ended: list[bool],
        evaluate: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]],
        metrics: PPOMetrics,
        *,
        training: bool,
        counted: int | None = None,
    ) -> dict[str, Tensor]:
        """Scores, log π and V, KL, token rewards, advantages and returns, whitening, the sampler's weights.

        Args:
            rollout: The parent's, of this process.
            rewards: Of all processes, `(N, reward functions)`, NaN where one does not apply.
            ended: Whether each completion of this process ended itself.
            evaluate: Gives log π and V of a rollout's tokens, `(B, T)` each, as the policy is now.
            metrics: Where numbers are taken down.
            training: Whether this is to be learned from, and moves the state.
            counted: How many of all processes' rows are not there twice, the first ones; None: all.
        """
        if training:
            self.state.begin()
        scores = self.scores(rewards, ended, metrics, training=training, counted=counted)
        rollout = rollout | self.own_tokens(rollout, scores)
        mask, ref_log_probs = rollout["tool_mask"], rollout.pop("ref_per_token_logps", None)
        unknown = torch.full(mask.shape, math.nan, device=mask.device)
        sampled = rollout.pop("sampling_per_token_logps", unknown)
        log_probs, values = evaluate(rollout)
        kl = None  # β = 0: no reference
        if ref_log_probs is not None:
            kl = kl_per_token(log_probs, ref_log_probs, estimator=self.args.kl_estimator)
        scores, beta = self.state.scaled(scores), self.state.kl_control.beta
        token_scores = token_rewards(scores, 0.0 if kl is None else kl, mask, beta=beta)
        advantages, returns = generalized_advantages(
            token_scores, values, mask, gamma=self.args.gamma, lam=self.args.lam
        )
        metrics.replace_groups(advantages, mask)
        seen = metrics.of_rollout(log_probs, kl, values, returns, mask)
        if kl is not None and training:
            metrics.add({"beta": beta})
            self.state.follow(seen, completions=len(scores) * self.args.world_size)
        if self.args.whiten_advantages:
            advantages = masked_whiten(advantages, mask, self.accelerator)
        if training:
            seen = {"policy's log π": log_probs, "KL to the reference": kl, "value model's output": values}
            seen |= {"reward": token_scores, "advantage": advantages}
            seen |= {"sampler's log π": sampled.masked_fill(sampled.isnan(), 0.0)}
            call = f"PPOTrainer.train: rollout {self.state.sampled - 1}"
            check_rows({name: x for name, x in seen.items() if x is not None}, mask, self.accelerator, call=call)
        weights = self.sampling_weights(sampled, log_probs, ref_log_probs, mask, metrics, training=training)
        learned = {"advantages": advantages * weights, "values": values, "returns": returns}
        return rollout | learned | {"old_per_token_logps": log_probs}

    def scores(
        self,
        rewards: Tensor,
        ended: list[bool],
        metrics: PPOMetrics,
        *,
        training: bool,
        counted: int | None = None,
    ) -> Tensor:
        """The scores of this process's completions, `(B,)`, NaN where there is none, or the row is there twice; all processes'
        move the statistics."""
        cut = ~self.accelerator.gather(torch.tensor(ended, device=rewards.device))
        scores = weighted_scores(rewards, self.reward_weights) - self.args.missing_eos_penalty * cut
        if training:
            unlearned = scores.isnan() | (cut & self.args.mask_truncated_completions)
            self.state.score_moments.update(scores[~unlearned])
        seen = metrics.of_scores(scores[:counted], cut[:counted])
        scores[len(scores) if counted is None else counted :] = math.nan
        if training:
            self.state.ending.update(seen["completions/eos_ratio"])
        return scores[self.accelerator.process_index * len(ended) :][: len(ended)]

    def sampling_weights(
        self,
        sampled: Tensor,
        log_probs: Tensor,
        ref_log_probs: Tensor | None,
        mask: Tensor,
        metrics: PPOMetrics,
        *,
        training: bool,
    ) -> Tensor:
        """What advantages are multiplied by, since the sampler is not quite the policy, `(B, T)`; 1 where nothing is known
        of it, without a cap, and under `use_vllm`, where TRL corrects as its own options say.
        """
        call = f"PPOTrainer: log-probabilities of {self.sampler}"
        sampled, placeholders = known_log_probs(sampled, log_probs, mask, self.accelerator, call=call)
        cap = None if self.args.use_vllm else self.args.sampling_weight_cap
        weights = torch.ones_like(log_probs) if cap is None else sampling_weights(log_probs, sampled, cap=cap)
        gap = metrics.of_sampling(sampled, log_probs, ref_log_probs, mask, cap=cap)
        if training:
            call = f"PPOTrainer.train: rollout {self.state.sampled - 1}"
            self.state.sampling.update(gap, placeholders=placeholders, sampler=self.sampler, call=call)
        return weights

    def own_tokens(self, rollout: dict[str, Tensor], scores: Tensor) -> dict[str, Tensor]:
        """The mask of tokens to learn from, under GRPO's name for it, and how many there are in all processes.

        They are the policy's own tokens in rows that were scored.
        """
        mask = rollout["completion_mask"] * (~scores.isnan()).unsqueeze(1)
        if "tool_mask" in rollout:
            mask = mask * rollout["tool_mask"]
        return {"tool_mask": mask, "num_items_in_batch": self.accelerator.gather(mask.sum()).sum()}
