"""PPO with a critic, on top of TRL's GRPO."""

from contextlib import nullcontext
from fractions import Fraction

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer

from trl_ext.memory_planning.memory_watch import MemoryWatch, card_of
from trl_ext.memory_planning.planning import MemoryPlan
from trl_ext.memory_planning.trainer_plan import longest_prompt, run_plan
from trl_ext.ppo.advantages import generalized_advantages
from trl_ext.ppo.callback import RolloutCallback
from trl_ext.ppo.collapse import CollapseWatch
from trl_ext.ppo.critic import Critic, CriticCallback
from trl_ext.ppo.drift import PolicyDrift
from trl_ext.ppo.kl_control import KLController
from trl_ext.ppo.metrics import PPOMetrics, loss_metrics, rollout_metrics
from trl_ext.ppo.migration import OlderCalls
from trl_ext.ppo.policy import (
    last_hidden_states,
    reference_from,
    turn_off_dropout,
    whole_sequences,
    without_reference,
)
from trl_ext.ppo.ppo_config import PPOConfig
from trl_ext.ppo.ppo_input import (
    check_lengths,
    check_policy,
    check_prompts,
    check_sampling,
    check_text,
    check_value_model,
    checked_args,
    non_empty,
)
from trl_ext.ppo.rollout_state import PPOCheckpoints
from trl_ext.ppo.score_scaling import RunningMoments
from trl_ext.ppo.stop_tokens import set_end_tokens
from trl_ext.ppo.text_mix import text_mix
from trl_ext.ppo.token_rewards import kl_per_token, token_rewards
from trl_ext.ppo.value_function import value_function
from trl_ext.ppo.value_loss import clipped_value_error
from trl_ext.rewards.reward_callables import reward_callables
from trl_ext.rewards.weighted_rewards import weighted_scores
from trl_ext.sequences.continuations import as_continuations
from trl_ext.trainer_kit.adapters import adapter_tensors, keep_adapters_in_fp32
from trl_ext.trainer_kit.masked import masked_whiten
from trl_ext.trainer_kit.overrides import replaced
from trl_ext.trainer_kit.trl_versions import end_tokens


class PPOTrainer(OlderCalls, PPOMetrics, PPOCheckpoints, GRPOTrainer):
    """PPO with a learned critic (Schulman et al., 2017, arXiv:1707.06347), on top of TRL's GRPO.

        reward_t = −β · kl_t + score · 1[t is the last own token]
        A_t      = GAE(reward, V), whitened over the batch of rollouts of all processes
        loss     = − mean min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t) + c_v · ½ mean max((V − R)², (V_clipped − R)²)
                   + c_ptx · mean NLL of text

    GRPO already samples, scores and applies the clipped policy loss. PPO only changes where the advantages come
    from, so a few methods are overridden, each of which calls its parent:

        create_optimizer                      also train the critic
        _generate_single_turn                 stay in evaluation where continuous batching would leave it
        _calculate_rewards                    keep the scores, which the parent does not return
        _generate_and_score_completions       replace the group advantages by GAE
        _get_per_token_logps_and_entropies    keep the log-probabilities, for the ratio that is logged
        _compute_loss                         leave KL to the reward, add the value loss
        _get_train_sampler                    an order of prompts per epoch that a resumed run finds again
        _save                                 leave TRL's copy of the adapter out

    `PPOCheckpoints` adds the critic, the rollouts in use and the statistics to what Trainer saves and loads; `PPOMetrics`
    is what is logged, and what follows from it.

    Args:
        model: The policy: a name, a causal LM, or a `PeftModel` with a trainable adapter. KL is measured to the
            policy as it is now: the base under a new adapter, a frozen copy of an adapter that was trained before.
        reward_funcs: A reward or a list of them: a function in TRL's protocol (sync or async), a reward model, or
            the path of one, which is then a `LearnedReward`.
        args: A `PPOConfig`.
        value_model: None for a linear head on the policy's last hidden state; or a one-label
            sequence-classification model with the policy's vocabulary, or the path of one, e.g. the reward model.
        ptx_dataset: Text that is learned beside, with `ptx_coef`: rows with `text`, `prompt` and `completion`, or
            `messages`.
        reward_processing_classes: Tokenizers of the reward models, None where it is found beside the model.
        others: All else that `GRPOTrainer` takes, by name: train_dataset (column `prompt`, text or messages; other
            columns reach the rewards), eval_dataset, processing_class, callbacks, optimizers, peft_config, …

    Raises:
        ValueError: For bad input, with the call, what was expected, what came and what to do.
    """

    _tag_names = ["trl", "trl-ext", "ppo"]  # noqa: RUF012 - as TRL declares it
    _name = "PPO"
    _paper = {"title": "Proximal Policy Optimization Algorithms", "id": "1707.06347"}  # noqa: RUF012

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs=None,
        args: PPOConfig | None = None,
        train_dataset=None,
        *,
        value_model: str | PreTrainedModel | PeftModel | None = None,
        ptx_dataset: Dataset | None = None,
        reward_processing_classes=None,
        **others,
    ):
        has_adapter = others.get("peft_config") is not None or isinstance(model, PeftModel)
        args = checked_args(args, model, others, has_adapter=has_adapter)
        check_prompts(train_dataset, args)
        check_value_model(value_model, reward_funcs)
        check_text(ptx_dataset, args)
        check_sampling(model, args, others.get("quantization_config"))
        if others.get("rollout_func") is not None:
            others["rollout_func"] = non_empty(others["rollout_func"])
        adapters = adapter_tensors(model, trainer="PPOTrainer")
        with reference_from(model, has_adapter=has_adapter):
            super().__init__(
                model=model,
                reward_funcs=reward_callables(reward_funcs, reward_processing_classes, args),
                reward_processing_classes=reward_processing_classes,
                args=args,
                train_dataset=train_dataset,
                **others,
            )
        check_policy(self.model, sees_images=self._is_vlm)
        if args.disable_dropout:
            turn_off_dropout(self.model)
        keep_adapters_in_fp32(self.model, adapters)
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", others.get("eval_dataset"))):
            if isinstance(dataset, Dataset):  # of a stream, each batch when it comes
                self._check_lengths(dataset["prompt"], name)
        self.critic = self._make_critic(value_model)
        self.add_callback(CriticCallback(self.critic, self._policy_rests))
        self.memory = MemoryWatch(self._memory_plan, card_of(self.args.device))
        self.add_callback(self.memory)
        self.add_callback(RolloutCallback(self))
        self.text = text_mix(ptx_dataset, self._tokenizer, args)
        set_end_tokens(self)
        self.score_moments, self.collapse = RunningMoments(), CollapseWatch()
        self.kl_control = KLController(self.beta, args.kl_target, args.kl_horizon)
        self.drift = PolicyDrift(args.max_policy_kl)
        self._rollouts = 0  # batches of rollouts sampled in training

    def _check_lengths(self, prompts, name: str) -> None:
        check_lengths(prompts, self._tokenizer, self.model.config, self.args, name=name)

    def _memory_plan(self) -> MemoryPlan:
        return run_plan(
            "ppo",
            self.model,
            self.args,
            prompt_length=longest_prompt(self.train_dataset, self._tokenizer),
            completion_length=self.args.max_completion_length,
            batch=self.args.generation_batch_size // self.args.world_size,
            rewards=self.reward_funcs,
            value_model=self.critic.own_model,
            reference=self.beta != 0,
            num_generations=self.num_generations,
        )

    def _make_critic(self, value_model) -> Critic:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                "PPOTrainer runs on one device or with data parallelism: the critic is outside the model that DeepSpeed "
                "and FSDP shard. Launch it without them."
            )
        if value_model is not None and not self.args.detach_critic:
            raise ValueError(
                "PPOTrainer(value_model=…) with PPOConfig(detach_critic=False): a value model has a trunk of its own, so no "
                "value loss could reach the policy's. Leave one of the two out."
            )
        function = value_function(
            value_model,
            policy=self.model,
            tokenizer=self._tokenizer,
            gradient_checkpointing=self.args.gradient_checkpointing,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        )
        rate = self.args.learning_rate * (10 if value_model is None else 1)
        given = self.args.critic_learning_rate
        return Critic(function, self.accelerator, learning_rate=rate if given is None else given)

    def create_optimizer(self, *args, **kwargs):
        super().create_optimizer(*args, **kwargs)
        self.critic.join(self.optimizer, weight_decay=self.args.weight_decay)
        return self.optimizer

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        if self.shuffle_dataset:  # accelerate calls this at the start of each epoch, also of a resumed one
            sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(self.args.seed + epoch)
        return sampler

    # Rollouts

    def _generate_single_turn(self, *args, **kwargs):
        training = self.model.training
        outputs = super()._generate_single_turn(*args, **kwargs)
        self.model.train(training)
        return outputs

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        if self.memory.phase == "generate":  # without a reference, nothing came between
            self.memory.enter("score")
        ended = [bool(ids) and ids[-1] in end_tokens(self) for ids in completion_ids_list]
        rows = [row | {"completion_ended": end} for row, end in zip(inputs, ended, strict=True)]
        completions = as_continuations(completions, completion_ids_list, self._tokenizer)
        rewards = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)  # of all processes
        cut = ~self.accelerator.gather(torch.tensor(ended, device=rewards.device))
        scores = weighted_scores(rewards, self.reward_weights) - self.args.missing_eos_penalty * cut
        if self.model.training:
            unlearned = scores.isnan() | (cut & self.mask_truncated_completions)
            self.score_moments.update(scores[~unlearned])
        self._record(
            {
                "score": scores.nanmean().item(),
                "rows_unscored": scores.isnan().sum().item(),
                "completions/eos_ratio": 1.0 - cut.float().mean().item(),
            }
        )
        self._scores = scores[self.accelerator.process_index * len(prompts) :][: len(prompts)]
        return rewards

    @torch.no_grad()
    def _generate_and_score_completions(self, inputs):
        self._check_lengths((row["prompt"] for row in inputs), "batch of rollouts")
        self.memory.enter("generate")
        aligned = Fraction(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        with replaced(self, num_iterations=aligned):  # the parent need not pass for old log-probs, the next one does
            rollout = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self._rollouts += 1
            self.drift.begin_rollout()
        rollout |= self._own_tokens(rollout)
        mask, ref_log_probs = rollout["tool_mask"], rollout.pop("ref_per_token_logps", None)
        log_probs, values = self._evaluate_policy(rollout)
        kl = self._kl(log_probs, ref_log_probs)
        rewards = token_rewards(self._scaled_scores(), 0.0 if kl is None else kl, mask, beta=self.kl_control.beta)
        advantages, returns = generalized_advantages(rewards, values, mask, gamma=self.args.gamma, lam=self.args.lam)
        self._replace_group_metrics(advantages, mask)
        metrics = rollout_metrics(log_probs, kl, values, returns, mask, self.accelerator)
        self._record(metrics)
        if kl is not None and self.model.training:
            self._follow_kl(metrics)
        if self.args.whiten_advantages:
            advantages = masked_whiten(advantages, mask, self.accelerator)
        self.memory.enter("train")
        return rollout | {
            "old_per_token_logps": log_probs,
            "advantages": advantages,
            "values": values,
            "returns": returns,
        }

    def _own_tokens(self, rollout: dict) -> dict[str, Tensor]:
        """The mask of tokens to learn from, under the parent's name for it, and how many there are in all processes.

        They are the policy's own tokens in rows that were scored.
        """
        mask = rollout["completion_mask"] * (~self._scores.isnan()).unsqueeze(1)
        if "tool_mask" in rollout:
            mask = mask * rollout["tool_mask"]
        return {"tool_mask": mask, "num_items_in_batch": self.accelerator.gather(mask.sum()).sum()}

    def _evaluate_policy(self, rollout: dict) -> tuple[Tensor, Tensor]:
        """log π and V of the completion's tokens, `(B, T)` each, as the policy is now.

        A pass of its own: the parent's last one was the reference's. In micro-batches of the size that the parent
        uses for the reference, so that equal weights give equal bits.
        """
        args, length = self.args, rollout["completion_ids"].size(1)
        size = args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size
        micro_batches = zip(*(tensor.split(size) for tensor in whole_sequences(rollout).values()), strict=True)
        passes = []
        for input_ids, attention_mask in micro_batches:
            tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
            with self._policy_states() as states:
                self._get_per_token_logps_and_entropies(self.model, **tokens, logits_to_keep=length)
            passes.append((self._log_probs, self._values(tokens, states, length)))
        log_probs, values = (torch.cat(tensors) for tensors in zip(*passes, strict=True))
        return log_probs, values

    def _kl(self, log_probs: Tensor, ref_log_probs: Tensor | None) -> Tensor | None:
        """KL to the reference per token, `(B, T)`; None where β is 0 and there is no reference."""
        if ref_log_probs is None:
            return None
        return kl_per_token(log_probs, ref_log_probs, estimator=self.args.kl_estimator)

    def _scaled_scores(self) -> Tensor:
        """The scores of this process's rows, `(B,)`; 0 for rows without, which are masked."""
        scores = self._scores
        if self.args.score_scaling:
            scores = self.score_moments.scale(scores, clip=self.args.score_clip)
        return scores.nan_to_num(0.0)

    # Loss

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        if self.memory.phase == "generate":  # it is over
            self.memory.enter("score")
        outputs = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._log_probs = outputs[0].detach()
        return outputs

    def _compute_loss(self, model, inputs):
        if self.drift.over and self.model.training:
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)  # no gradient, no step
        with self._policy_states() as states, replaced(self, beta=0.0):  # the reward has charged for KL already
            policy_loss = super()._compute_loss(model, inputs)
        log_probs = self._log_probs
        values = self._values(whole_sequences(inputs), states, inputs["completion_ids"].size(1))
        clip = self.args.value_clip
        error = clipped_value_error(values, inputs["values"], inputs["returns"], clip=clip)
        metrics = loss_metrics(log_probs, values.detach(), error.detach(), inputs, clip, self.accelerator)
        self._record(metrics)
        if self.model.training:
            self.drift.add(metrics["policy_kl"])
        value_loss = error.masked_fill(inputs["tool_mask"] == 0, 0.0).sum() / self._tokens_per_window(inputs)
        loss = policy_loss + self.args.value_coef * value_loss
        if self.text is not None and self.model.training and not self._policy_rests():
            loss = loss + self.args.ptx_coef * self._text_loss(model)
        return loss

    def _text_loss(self, model) -> Tensor:
        loss, mean = self.text.loss(
            model, self._step, micro_batches=self.args.gradient_accumulation_steps, accelerator=self.accelerator
        )
        self._record({"ptx_loss": mean})
        return loss

    def _policy_rests(self) -> bool:
        """Whether only the critic learns, in its warm-up."""
        return self._rollouts <= self.args.critic_warmup_rollouts

    def _values(self, tokens: dict[str, Tensor], states: list[Tensor], length: int) -> Tensor:
        hidden = {}
        if self.critic.reads_policy:
            hidden = {"hidden_states": states[-1].detach() if self.args.detach_critic else states[-1]}
        return self.critic.values(length, **tokens, **hidden)

    def _policy_states(self):
        return last_hidden_states(self.model) if self.critic.reads_policy else nullcontext([])

    def _tokens_per_window(self, inputs: dict) -> Tensor:
        """What the parent divides its loss by: real tokens per accumulation window and process."""
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if not self.model.training:
            return tokens
        return tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation

    # Saving

    def _save(self, output_dir=None, state_dict=None):
        with without_reference(self.model):
            super()._save(output_dir, state_dict)
