"""PPO with a critic, on top of TRL's GRPO."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from fractions import Fraction
from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOTrainer

from trl_ext.memory_planning.memory_watch import MemoryWatch, card_of
from trl_ext.memory_planning.planning import MemoryPlan
from trl_ext.memory_planning.trainer_plan import longest_prompt, run_plan
from trl_ext.ppo.advantages import generalized_advantages
from trl_ext.ppo.collapse import CollapseCallback
from trl_ext.ppo.critic import CRITIC_FILE, CriticCallback
from trl_ext.ppo.drift import DriftCallback
from trl_ext.ppo.metrics import PPOMetrics
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
from trl_ext.ppo.rollout_state import RolloutState, state_files
from trl_ext.ppo.stop_tokens import set_end_tokens
from trl_ext.ppo.text_mix import text_mix
from trl_ext.ppo.token_rewards import kl_per_token, token_rewards
from trl_ext.ppo.value_function import make_critic
from trl_ext.ppo.value_loss import clipped_value_error
from trl_ext.rewards.reward_callables import Reward, reward_callables
from trl_ext.rewards.weighted_rewards import weighted_scores
from trl_ext.sequences.continuations import as_continuations
from trl_ext.trainer_kit.adapters import adapter_tensors, keep_adapters_in_fp32, trains_adapter
from trl_ext.trainer_kit.checkpoints import ResumableTrainer
from trl_ext.trainer_kit.masked import masked_whiten
from trl_ext.trainer_kit.overrides import outputs_of, replaced
from trl_ext.trainer_kit.trl_versions import end_tokens

LOG_PROBS = "_get_per_token_logps_and_entropies"  # GRPOTrainer's pass that gives log π first


class PPOTrainer(OlderCalls, ResumableTrainer, GRPOTrainer):
    """PPO with a learned critic (Schulman et al., 2017, arXiv:1707.06347), on top of TRL's GRPO.

        reward_t = −β · kl_t + score · 1[t is the last own token]
        A_t      = GAE(reward, V), whitened over the batch of rollouts of all processes
        loss     = − mean min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t) + c_v · ½ mean max((V − R)², (V_clipped − R)²)
                   + c_ptx · mean NLL of text

    GRPO already samples, scores and applies the clipped policy loss. PPO only changes where the advantages come
    from, so a few methods are overridden, each of which calls its parent:

        create_optimizer                      also train the critic
        _generate                             tell phases of memory apart; stay in evaluation where continuous batching
                                              would leave it
        _calculate_rewards                    tell the rewards which completions ended
        _generate_and_score_completions       replace the group advantages by GAE
        _compute_loss                         leave KL to the reward, add the value loss
        _get_train_sampler                    an order of prompts per epoch that a resumed run finds again
        _save_optimizer_and_scheduler         also save the critic, the rollouts in use and what is kept over them
        _load_optimizer_and_scheduler         also load them
        _save                                 leave TRL's copy of the adapter out

    Besides, each a part with its own file: `RolloutState` is what changes over rollouts, `Critic` the value function and
    its training, `PPOMetrics` what is logged, `TextMix` text that is learned beside, `MemoryWatch` the plan of memory.

    Relations: λ = 1 learns from the Monte-Carlo return less V, λ = 0 from the one-step TD error; β = 0 loads no reference
    and charges no KL; c_v = 0 leaves a head at V = 0, and with γ = λ = 1 the whitened return in place of a group's
    advantage; one epoch of one step per rollout has ρ = 1, so that nothing is clipped; c_ptx = 0 is plain PPO.

    Args:
        model: The policy: a name, a causal LM, or a `PeftModel` with a trainable adapter. KL is measured to the
            policy as it is now: the base under a new adapter, a frozen copy of an adapter that was trained before.
        reward_funcs: A reward or a list of them: a function in TRL's protocol (sync or async), a reward model, or
            the path of one, which is then a `LearnedReward`.
        args: A `PPOConfig`.
        train_dataset, eval_dataset: Rows with `prompt`, text or messages; other columns reach the rewards.
        processing_class: The policy's tokenizer, None where it is found beside the model.
        reward_processing_classes: Tokenizers of the reward models, None where it is found beside the model.
        callbacks, optimizers, quantization_config, peft_config, rollout_func: As `GRPOTrainer` takes them; no scheduler
            beside the optimizer.
        value_model: None for a linear head on the policy's last hidden state; or a one-label
            sequence-classification model with the policy's vocabulary, or the path of one, e.g. the reward model.
        ptx_dataset: Text that is learned beside, with `ptx_coef`: rows with `text`, `prompt` and `completion`, or
            `messages`.
        others: What else this TRL's `GRPOTrainer` takes; tools and environments are refused.

    Raises:
        ValueError: For bad input, with the call, what was expected, what came and what to do.
    """

    _tag_names = ["trl", "trl-ext", "ppo"]  # noqa: RUF012 - as TRL declares it
    _name = "PPO"
    _paper = {"title": "Proximal Policy Optimization Algorithms", "id": "1707.06347"}  # noqa: RUF012

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: Reward | Sequence[Reward] | None = None,
        args: PPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset
        | IterableDataset
        | DatasetDict
        | IterableDatasetDict
        | dict[str, Dataset | IterableDataset]
        | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        *,
        rollout_func: Callable[[list, GRPOTrainer], dict[str, Any]] | None = None,
        value_model: str | PreTrainedModel | PeftModel | None = None,
        ptx_dataset: Dataset | None = None,
        **others: None,  # a type checker objects to what is not named above
    ):
        has_adapter = trains_adapter(model, peft_config)
        args = checked_args(args, model, optimizers, others, has_adapter=has_adapter)
        check_prompts(train_dataset, args)
        check_value_model(value_model, reward_funcs, args)
        check_text(ptx_dataset, args)
        check_sampling(model, args, quantization_config)
        adapters = adapter_tensors(model, trainer="PPOTrainer")
        with reference_from(model, has_adapter=has_adapter):
            super().__init__(
                model=model,
                reward_funcs=reward_callables(reward_funcs, reward_processing_classes, args),
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
                rollout_func=non_empty(rollout_func),
                **others,
            )
        check_policy(self.model, sees_images=self._is_vlm, sharded=self.is_deepspeed_enabled or self.is_fsdp_enabled)
        if args.disable_dropout:
            turn_off_dropout(self.model)
        keep_adapters_in_fp32(self.model, adapters)
        self._check_datasets(train_dataset=train_dataset, eval_dataset=eval_dataset)
        self.critic = make_critic(value_model, self.model, self._tokenizer, args, self.accelerator)
        self.rollouts = RolloutState(args)
        self.memory = MemoryWatch(self._memory_plan, card_of(args.device))
        self.text = text_mix(ptx_dataset, self._tokenizer, args)
        set_end_tokens(self)
        self.add_callback(CriticCallback(self.critic, self.rollouts.policy_rests))
        self.add_callback(self.memory)
        self.add_callback(DriftCallback(self.rollouts.drift, self._metrics["train"]))
        self.add_callback(CollapseCallback(self.rollouts.collapse))

    @property
    def metrics(self) -> PPOMetrics:
        """Takes down numbers of training or of evaluation, whichever is on."""
        return PPOMetrics(self.accelerator, self._metrics["train" if self.model.training else "eval"])

    def _check_datasets(self, **datasets) -> None:
        for name, dataset in datasets.items():
            if isinstance(dataset, Dataset):  # of a stream, each batch when it comes
                self._check_lengths(dataset["prompt"], name)

    def _check_lengths(self, prompts: Iterable, name: str) -> None:
        check_lengths(prompts, self._tokenizer, self.model.config, self.args, name=name)

    def _memory_plan(self) -> MemoryPlan:
        return run_plan(
            "ppo",
            self.model,
            self.args,
            prompt_length=longest_prompt(self.train_dataset, self._tokenizer, self.args.chat_template_kwargs),
            completion_length=self.args.max_completion_length,
            batch=self.args.generation_batch_size // self.args.world_size,
            rewards=self.reward_funcs,
            value_model=self.critic.own_model,
            reference=self.beta != 0,
            num_generations=self.num_generations,
        )

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

    def _generate(self, prompts):
        training = self.model.training
        self.memory.enter("generate")
        outputs = super()._generate(prompts)
        self.memory.enter("score")
        self.model.train(training)
        return outputs

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        ended = self._ended(completion_ids_list)
        rows = [row | {"completion_ended": end} for row, end in zip(inputs, ended, strict=True)]
        completions = as_continuations(completions, completion_ids_list, self._tokenizer)
        return super()._calculate_rewards(rows, prompts, completions, completion_ids_list)

    @torch.no_grad()
    def _generate_and_score_completions(self, inputs):
        self._check_lengths((row["prompt"] for row in inputs), "batch of rollouts")
        aligned = Fraction(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        with (
            outputs_of(self, "_calculate_rewards") as rewards,
            outputs_of(self, "_ended") as ended,
            replaced(self, num_iterations=aligned),  # the parent need not pass for old log-probs, the next pass does
        ):
            rollout = super()._generate_and_score_completions(inputs)
        rollout = self._with_advantages(rollout, rewards[0], ended[0])
        self.memory.enter("train")
        return rollout

    def _with_advantages(self, rollout: dict, rewards: Tensor, ended: list[bool]) -> dict[str, Tensor]:
        """What the loss learns from: log π, V, advantages and returns of each token, `(B, T)`, as the policy is now.

        Args:
            rollout: The parent's, with `B` completions of `T` tokens.
            rewards: Of the completions of all processes, `(N, reward functions)`.
            ended: Whether each completion ended itself, of this process's.
        """
        if self.model.training:
            self.rollouts.begin()
        scores = self._scores(rewards, ended)
        rollout |= self._own_tokens(rollout, scores)
        mask, ref_log_probs = rollout["tool_mask"], rollout.pop("ref_per_token_logps", None)
        log_probs, values = self._evaluate_policy(rollout)
        kl = self._kl(log_probs, ref_log_probs)
        scores, beta = self.rollouts.scaled(scores), self.rollouts.kl_control.beta
        rewards = token_rewards(scores, 0.0 if kl is None else kl, mask, beta=beta)
        advantages, returns = generalized_advantages(rewards, values, mask, gamma=self.args.gamma, lam=self.args.lam)
        self.metrics.replace_groups(advantages, mask, table=self._logs["advantages"])
        seen = self.metrics.of_rollout(log_probs, kl, values, returns, mask)
        if kl is not None and self.model.training:
            self.metrics.add({"beta": beta})
            self.rollouts.follow(seen, completions=len(scores) * self.args.world_size)
        if self.args.whiten_advantages:
            advantages = masked_whiten(advantages, mask, self.accelerator)
        return rollout | {
            "old_per_token_logps": log_probs,
            "advantages": advantages,
            "values": values,
            "returns": returns,
        }

    def _ended(self, completions: list[list[int]]) -> list[bool]:
        """Whether each completion ended itself, rather than for lack of room."""
        return [bool(ids) and ids[-1] in end_tokens(self) for ids in completions]

    def _scores(self, rewards: Tensor, ended: list[bool]) -> Tensor:
        """The scores of this process's completions, `(B,)`, NaN where there is none; all processes' move the statistics."""
        cut = ~self.accelerator.gather(torch.tensor(ended, device=rewards.device))
        scores = weighted_scores(rewards, self.reward_weights) - self.args.missing_eos_penalty * cut
        if self.model.training:
            unlearned = scores.isnan() | (cut & self.mask_truncated_completions)
            self.rollouts.score_moments.update(scores[~unlearned])
        self.metrics.of_scores(scores, cut)
        return scores[self.accelerator.process_index * len(ended) :][: len(ended)]

    def _own_tokens(self, rollout: dict, scores: Tensor) -> dict[str, Tensor]:
        """The mask of tokens to learn from, under the parent's name for it, and how many there are in all processes.

        They are the policy's own tokens in rows that were scored.
        """
        mask = rollout["completion_mask"] * (~scores.isnan()).unsqueeze(1)
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
                log_probs = self._get_per_token_logps_and_entropies(self.model, **tokens, logits_to_keep=length)[0]
            passes.append((log_probs, self._values(tokens, states, length)))
        log_probs, values = (torch.cat(tensors) for tensors in zip(*passes, strict=True))
        return log_probs, values

    def _kl(self, log_probs: Tensor, ref_log_probs: Tensor | None) -> Tensor | None:
        """KL to the reference per token, `(B, T)`; None where β is 0 and there is no reference."""
        if ref_log_probs is None:
            return None
        return kl_per_token(log_probs, ref_log_probs, estimator=self.args.kl_estimator)

    # Loss

    def _compute_loss(self, model, inputs):
        if self.model.training and self.rollouts.drift.over:
            return torch.zeros((), device=self.accelerator.device, requires_grad=True)  # no gradient, no step
        with self._policy_states() as states, outputs_of(self, LOG_PROBS) as passes, replaced(self, beta=0.0):
            loss = super()._compute_loss(model, inputs)  # β = 0: the reward has charged for KL already
        values = self._values(whole_sequences(inputs), states, inputs["completion_ids"].size(1))
        error = clipped_value_error(values, inputs["values"], inputs["returns"], clip=self.args.value_clip)
        self._watch_loss(passes[-1][0], values, error, inputs)
        loss = loss + self.args.value_coef * self._mean_over_window(error, inputs)
        if self.text is not None and self.model.training and not self.rollouts.policy_rests():
            loss = loss + self.args.ptx_coef * self._text_loss(model)
        return loss

    def _watch_loss(self, log_probs: Tensor, values: Tensor, error: Tensor, inputs: dict) -> None:
        seen = self.metrics.of_loss(log_probs, values, error, inputs, clip=self.args.value_clip)
        if self.model.training:
            self.rollouts.drift.add(seen["policy_kl"])

    def _text_loss(self, model) -> Tensor:
        loss, mean = self.text.loss(
            model, self._step, micro_batches=self.args.gradient_accumulation_steps, accelerator=self.accelerator
        )
        self.metrics.add({"ptx_loss": mean})
        return loss

    def _values(self, tokens: dict[str, Tensor], states: list[Tensor], length: int) -> Tensor:
        hidden = {}
        if self.critic.reads_policy:
            hidden = {"hidden_states": states[-1].detach() if self.args.detach_critic else states[-1]}
        return self.critic.values(length, **tokens, **hidden)

    def _policy_states(self):
        return last_hidden_states(self.model) if self.critic.reads_policy else nullcontext([])

    def _mean_over_window(self, terms: Tensor, inputs: dict) -> Tensor:
        """Terms per token, `(B, T)`, summed and divided by what the parent divides its loss by: real tokens per
        accumulation window and process.
        """
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return terms.masked_fill(inputs["tool_mask"] == 0, 0.0).sum() / tokens

    # Saving

    def _checkpoint_files(self):
        entropy = ("entropy_ctrl_state.json",) if self.use_adaptive_entropy else ()  # TRL writes it last of all
        states = (name for process in range(self.accelerator.num_processes) for name in state_files(process))
        return (*super()._checkpoint_files(), CRITIC_FILE, *entropy, *states)

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.accelerator.is_main_process:
            self.critic.save(output_dir)
        process = self.accelerator.process_index
        self.rollouts.save(output_dir, process, step=self._step, batches=self._buffered_inputs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is not None:
            process, device = self.accelerator.process_index, self.accelerator.device
            self._step, self._buffered_inputs = self.rollouts.load(checkpoint, process, device)
            self.critic.load(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _save(self, output_dir=None, state_dict=None):
        with without_reference(self.model):
            super()._save(output_dir, state_dict)
