"""PPO with a critic, on top of TRL's GRPO."""

import math
from collections.abc import Callable, Sequence, Sized
from fractions import Fraction
from os import PathLike
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOTrainer

from trl_ext.generation.protocol import Generator
from trl_ext.memory_planning.memory_watch import MemoryWatch, card_of
from trl_ext.memory_planning.planning import MemoryPlan
from trl_ext.memory_planning.trainer_plan import longest_prompt, run_plan
from trl_ext.ppo.critic import CRITIC_FILE, CriticCallback
from trl_ext.ppo.critic_inside import send_policy_alone, taken_out, without_critic
from trl_ext.ppo.engine_checks import check_whole, shards_policy
from trl_ext.ppo.like_lengths import TOKEN_MEANS, LikeLengths, joined, weigh
from trl_ext.ppo.metrics import PPOMetrics
from trl_ext.ppo.migration import OlderCalls
from trl_ext.ppo.policy import reference_from, turn_off_dropout, whole_sequences, without_reference
from trl_ext.ppo.ppo_config import PPOConfig
from trl_ext.ppo.ppo_input import (
    EvalRows,
    Rows,
    check_columns,
    check_policy,
    check_template_options,
    check_text,
    check_value_model,
    checked_args,
    named_rows,
    read_data,
)
from trl_ext.ppo.ppo_record import FIXED, ppo_record, sampler_name, samples_of
from trl_ext.ppo.prompt_checks import PromptChecks
from trl_ext.ppo.rollout_state import RolloutState, state_files
from trl_ext.ppo.samplers import ask, check_sampling, checked_sampler, non_empty
from trl_ext.ppo.sampling_watch import SamplingWatch
from trl_ext.ppo.stop_tokens import set_end_tokens
from trl_ext.ppo.text_mix import text_mix
from trl_ext.ppo.value_checkpoint import save_value_model
from trl_ext.ppo.value_function import make_critic, values_beside
from trl_ext.ppo.value_loss import clipped_value_error
from trl_ext.ppo.walk import CompletionWalk
from trl_ext.rewards.held_errors import errors_held
from trl_ext.rewards.reward_callables import Reward, reward_callables
from trl_ext.sequences.continuations import as_continuations
from trl_ext.sequences.saved_policies import policy_at
from trl_ext.trainer_kit.adapters import (
    adapter_tensors,
    complete_reference,
    keep_4_bit_layout,
    keep_adapters_in_fp32,
    trains_adapter,
)
from trl_ext.trainer_kit.checkpoints import ResumableTrainer
from trl_ext.trainer_kit.finite_findings import named_sampling
from trl_ext.trainer_kit.finite_steps import FiniteSteps
from trl_ext.trainer_kit.head_tiles import tiles_for
from trl_ext.trainer_kit.loading import whole_loading
from trl_ext.trainer_kit.overrides import outputs_of, replaced
from trl_ext.trainer_kit.passes import states_as_one_matrix
from trl_ext.trainer_kit.processes import together
from trl_ext.trainer_kit.rates import RATES
from trl_ext.trainer_kit.sharding import as_cut, check_prepared, put_together, whole
from trl_ext.trainer_kit.trl_versions import end_tokens

LOG_PROBS = "_get_per_token_logps_and_entropies"  # GRPOTrainer's pass that gives log π first


class PPOTrainer(OlderCalls, LikeLengths, FiniteSteps, ResumableTrainer, GRPOTrainer):
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
        _calculate_rewards                    tell the rewards which completions ended; raise one's error in all processes
        _generate_and_score_completions       replace the group advantages by GAE
        _get_per_token_logps_and_entropies    on a CPU, take narrower tiles of the vocabulary
        _compute_loss                         leave KL to the reward, add the value loss
        prediction_step                       the loss of all processes' rows, each once
        _get_train_sampler                    an order of prompts per epoch that a resumed run finds again
        _save_optimizer_and_scheduler         also save the critic, the rollouts in use and what is kept over them
        _load_optimizer_and_scheduler         also load them
        _save                                 leave TRL's copy of the adapter out

    Besides, each a part with its own file: `CompletionWalk` leads from scores to advantages, `RolloutState` is what it
    keeps over rollouts, `Critic` the value function and its training, `PPOMetrics` what is logged, `TextMix` text that is
    learned beside, `MemoryWatch` the plan of memory; `LikeLengths` puts rows of like length into a micro-batch.

    Relations: λ = 1 learns from the Monte-Carlo return less V, λ = 0 from the one-step TD error; β = 0 loads no reference
    and charges no KL; c_v = 0 leaves a head at V = 0, and with γ = λ = 1 the whitened return in place of a group's
    advantage; one epoch of one step per rollout has ρ = 1, so that nothing is clipped; c_ptx = 0 is plain PPO.

    Args:
        model: The policy: a name or path, also that of an adapter, a causal LM, or a `PeftModel` with a trainable adapter.
            KL is measured to the policy as it is now: the base under a new adapter, a frozen copy of an adapter that was
            trained before.
        reward_funcs: A reward or a list of them: a function in TRL's protocol (sync or async), a reward model, or
            the path of one, which is then a `LearnedReward`.
        args: A `PPOConfig`.
        train_dataset, eval_dataset: Rows with `prompt`, text or messages; other columns reach the rewards.
        processing_class: The policy's tokenizer, None where it is found beside the model.
        reward_processing_classes: Tokenizers of the reward models, None where it is found beside the model.
        callbacks, optimizers, quantization_config, peft_config, rollout_func: As `GRPOTrainer` takes them; no scheduler
            beside the optimizer.
        generator: Who samples: None for TRL, by `generate` or as the config says; or a `VLLMGenerator`, which is sent the
            adapter alone; a `TransformersGenerator`, as RAFT samples, whose ended rows leave their batch; or anything
            with their methods.
        value_model: None for a linear head on the policy's last hidden state; or a one-label
            sequence-classification model with the policy's vocabulary, or the path of one, e.g. the reward model.
        ptx_dataset: Text that is learned beside, with `ptx_coef`: rows with `text`, `prompt` and `completion`, or
            `messages`.
        others: What else this TRL's `GRPOTrainer` takes; tools and environments are refused.

    Raises:
        ValueError: For bad input, with the call, what was expected, what came and what to do.
        RuntimeError: In `train`, where who samples instead of the policy leaves its adapter out.
        FloatingPointError: In `train`, where a loss, a gradient or a rollout's numbers are not finite; it says which.
    """

    args: PPOConfig
    model: PreTrainedModel | PeftModel

    _tag_names = ["trl", "trl-ext", "ppo"]  # noqa: RUF012 - as TRL declares it
    _name = "PPO"
    _paper = {  # noqa: RUF012
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
        "citation": "@article{schulman2017proximal,\n  title = {{Proximal Policy Optimization Algorithms}},\n"
        "  author = {John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov},\n"
        "  year = 2017,\n  eprint = {arXiv:1707.06347}\n}",
    }
    _row_ids = "prompt_ids"
    _shown = ("score", "kl_per_completion", "completions/mean_length", "explained_variance")
    _rates = ("learning_rate", "critic_learning_rate")

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: Reward | Sequence[Reward] | None = None,
        args: PPOConfig | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: EvalRows | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        *,
        rollout_func: Callable[[list, GRPOTrainer], dict[str, Any]] | None = None,
        generator: Generator | None = None,
        value_model: str | PreTrainedModel | PeftModel | None = None,
        ptx_dataset: Dataset | None = None,
        **others: None,  # a type checker objects to what is not named above
    ):
        model, processing_class = policy_at(model, processing_class, args, quantization_config, trainer="PPOTrainer")
        has_adapter = trains_adapter(model, peft_config)
        args = checked_args(args, model, optimizers, others, has_adapter=has_adapter)
        train_dataset, eval_dataset = read_data(train_dataset, eval_dataset, args)
        check_value_model(value_model, reward_funcs, args)
        check_whole({"model": model, "value_model": value_model}, reward_funcs)
        check_text(ptx_dataset, args)
        check_sampling(model, args, quantization_config)
        rollouts, rollout_func = checked_sampler(generator, rollout_func, args)
        rewards = reward_callables(reward_funcs, reward_processing_classes, args)
        if rollout_func is None:  # which may add columns
            check_columns(rewards, train_dataset, eval_dataset)
            check_template_options(named_rows(train_dataset, eval_dataset), ptx_dataset, args)
        adapters = adapter_tensors(model, trainer="PPOTrainer")
        with whole_loading(), reference_from(model, has_adapter=has_adapter):
            super().__init__(
                model=model,
                reward_funcs=rewards,
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
        self._take_policy(adapters, named_rows(train_dataset, eval_dataset))
        ask(rollouts, self)
        where = {"accelerator": self.accelerator, "sharded": shards_policy(self)}
        self.critic = make_critic(value_model, self.model, self._tokenizer, args, **where)
        if self.critic.is_inside and self.use_vllm:
            send_policy_alone(self.vllm_generation, self.model)
        self.rollouts = RolloutState(args)
        self.walk = CompletionWalk(args, self.accelerator, self.rollouts, self.reward_weights, sampler_name(self))
        self.memory = MemoryWatch(self._memory_plan, card_of(args.device))
        self.text = text_mix(ptx_dataset, self._tokenizer, self.model.config, args)
        self.add_callback(CriticCallback(self.critic, self.rollouts.policy_rests))
        self.add_callback(self.memory)
        with taken_out(self.model):  # the policy is the same wherever its critic is
            self._note_beginning(value_model=self.critic.own_model)

    def _take_policy(self, adapters: dict[str, Tensor], datasets: dict[str, Rows | None]) -> None:
        """Check the policy, and what it is to read; make it ready to be trained.

        Args:
            adapters: Their tensors as they were given, before TRL cast them.
            datasets: By the argument that they came in.
        """
        check_policy(self.model, sees_images=self._is_vlm)
        if self.args.disable_dropout:
            turn_off_dropout(self.model)
        complete_reference(self.model)
        keep_adapters_in_fp32(self.model, adapters)
        keep_4_bit_layout(self.model)
        self.prompts = PromptChecks(self._tokenizer, self.model.config, self.args)
        self.prompts.of_datasets(datasets)
        set_end_tokens(self)

    @property
    def metrics(self) -> PPOMetrics:
        """Takes down numbers of training or of evaluation, whichever is on."""
        logged = self._metrics["train" if self.model.training else "eval"]
        return PPOMetrics(self.accelerator, logged, self._logs["advantages"])

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
            generator="vllm" if sampler_name(self) == "vllm" else "transformers",
        )

    def create_optimizer(self, *args, **kwargs):
        is_new = self.optimizer is None
        super().create_optimizer(*args, **kwargs)
        self.critic.join(self.optimizer, weight_decay=self.args.weight_decay, is_new=is_new)
        return self.optimizer

    def _clip_grad_norm(self, model):
        return whole(super()._clip_grad_norm(self.critic.policy_of(model)))

    def _get_grad_norm(self, model, grad_norm=None):
        return whole(super()._get_grad_norm(self.critic.policy_of(model), grad_norm))

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        if self.shuffle_dataset:  # accelerate calls this at the start of each epoch, also of a resumed one
            sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(self.args.seed + epoch)
        return sampler

    def _check_evaluates(self) -> None:
        check_prepared(self, not self.critic.is_inside or self.optimizer is not None)

    def prediction_step(self, *args, **kwargs):
        loss, *others = super().prediction_step(*args, **kwargs)
        mean = self.accelerator.reduce(loss, reduction="mean")  # each process's is a part of one sum over tokens
        return mean, *others

    # Rollouts

    def _generate(self, prompts):
        training = self.model.training
        self.memory.enter("generate")
        policy = self.accelerator.unwrap_model(self.model)
        with named_sampling(f"PPOTrainer: rollout {self.rollouts.sampled}"), states_as_one_matrix(policy):
            outputs = super()._generate(prompts)
        as_cut(policy)
        self.memory.enter("score")
        self.model.train(training)
        return outputs

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        ended = self._ended(completion_ids_list)
        rows = [row | {"completion_ended": end} for row, end in zip(inputs, ended, strict=True)]
        completions = as_continuations(completions, completion_ids_list, self._tokenizer)
        with errors_held(self.reward_funcs, self.accelerator) as held, replaced(self, reward_funcs=held):
            return super()._calculate_rewards(rows, prompts, completions, completion_ids_list)

    def _ended(self, completions: list[list[int]]) -> list[bool]:
        """Whether each completion ended itself, rather than for lack of room."""
        return [bool(ids) and ids[-1] in end_tokens(self) for ids in completions]

    @torch.no_grad()
    def _generate_and_score_completions(self, inputs):
        inputs = self.prompts.read_batch(inputs)
        aligned = Fraction(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        with (
            outputs_of(self, "_calculate_rewards") as rewards,
            outputs_of(self, "_ended") as ended,
            replaced(self, num_iterations=aligned),  # the parent need not pass for old log-probs, the next pass does
        ):
            rollout = super()._generate_and_score_completions(inputs)
        how = {"training": self.model.training, "counted": self._counted(len(rewards[0]))}
        rollout = self.walk(rollout, rewards[0], ended[0], self._evaluate_policy, self.metrics, **how)
        self.memory.enter("train")
        return rollout

    def _counted(self, rows: int) -> int | None:
        """How many of all processes' rows an evaluation counts: in its last batch accelerate repeats some behind."""
        if self.model.training or not self.accelerator.gradient_state.end_of_dataloader:
            return None
        dataset = self.callback_handler.eval_dataloader.dataset
        real = len(dataset) * self.num_generations_eval if isinstance(dataset, Sized) else 0
        return real % rows or None

    def _evaluate_policy(self, rollout: dict) -> tuple[Tensor, Tensor]:
        """log π and V of the completion's tokens, `(B, T)` each, as the policy is now.

        A pass of its own: the parent's last one was the reference's. In the micro-batches in which the parent passes for
        the reference, so that equal weights give equal bits.
        """
        args = self.args
        size = args.per_device_train_batch_size if self.model.training else args.per_device_eval_batch_size
        places, passes = self._rows_alike(rollout, size), []
        for part in (self._cut(rollout, rows) for rows in places):
            tokens, length = whole_sequences(part), part["completion_ids"].size(1)
            with values_beside(self.critic, self.model, detach=args.detach_critic) as values_of:
                log_probs = self._get_per_token_logps_and_entropies(self.model, **tokens, logits_to_keep=length)[0]
            passes.append((log_probs, values_of(tokens, length)))
        log_probs, values = (
            joined(places, parts, like=rollout["completion_ids"]) for parts in zip(*passes, strict=True)
        )
        return log_probs, values

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        with tiles_for(self.accelerator.device):  # of the reference, of `_evaluate_policy` and of the loss
            found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if not torch.is_grad_enabled():
            as_cut(self.model)  # or an adapter would rest, and learn again, in copies that the next step does not move
        return found

    # Loss

    def _compute_loss(self, model, inputs):
        beside = values_beside(self.critic, self.model, detach=self.args.detach_critic)
        with beside as values_of, outputs_of(self, LOG_PROBS) as passes, replaced(self, beta=0.0):
            policy_loss = super()._compute_loss(model, inputs)  # β = 0: the reward has charged for KL already
        values = values_of(whole_sequences(inputs), inputs["completion_ids"].size(1))
        error = clipped_value_error(values, inputs["values"], inputs["returns"], clip=self.args.value_clip)
        seen = self.metrics.of_loss(passes[-1][0], values, error, inputs, clip=self.args.value_clip)
        weigh(self.metrics.logged, (*TOKEN_MEANS, *seen), inputs)
        value_loss = self.args.value_coef * self._mean_over_window(error, inputs)
        terms = {"policy loss": policy_loss, "value loss": value_loss}
        if self.text is not None and self.model.training and not self.rollouts.policy_rests():
            terms["text loss"] = self.args.ptx_coef * self._text_loss(model)
        return self.finite.total(terms)

    def _text_loss(self, model) -> Tensor:
        loss, mean = self.text.loss(
            model, self._step, micro_batches=self.args.gradient_accumulation_steps, accelerator=self.accelerator
        )
        self.metrics.add({"ptx_loss": mean})
        return loss

    def _mean_over_window(self, terms: Tensor, inputs: dict) -> Tensor:
        """Terms per token, `(B, T)`, summed and divided by what the parent divides its loss by: real tokens per
        accumulation window and process.
        """
        tokens = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return terms.masked_fill(inputs["tool_mask"] == 0, 0.0).sum() / tokens

    # What is not finite

    def _learners(self):
        beside = {} if self.critic.is_inside else {"value model": self.accelerator.unwrap_model(self.critic.module)}
        return super()._learners() | beside

    def _row_losses(self, term, batches, k):
        if term == "text loss":
            yield from self.text.row_losses(self.model, self._step - len(batches) + k, self.accelerator)
            return
        with replaced(self, text=None):
            yield from super()._row_losses(term, batches, k)

    # The run, and saving it

    def _steps_to_know(self):
        return math.ceil(2 * self.args.steps_per_rollout)

    def _last_samples(self):
        return samples_of(self._logs, self.reward_weights.tolist())

    def _scored_by(self):
        return self.reward_func_names

    def _recorded(self):
        return ppo_record(self, self.text and self.text.dataset)

    def _fixed(self):
        return super()._fixed() | FIXED

    def _checkpoint_files(self):
        entropy = ("entropy_ctrl_state.json",) if self.use_adaptive_entropy else ()  # TRL writes it last of all
        states = (name for process in self._processes() for name in state_files(process))
        return (*super()._checkpoint_files(), CRITIC_FILE, *entropy, *states)

    def save_value_model(self, output_dir: str | PathLike) -> None:
        """Write the value model: a plain sequence-classification checkpoint with one label, or an adapter of one, which
        `value_model=`, `LearnedReward` and transformers read; not into a folder of the policy's. A head on the policy is
        written with the policy's trunk, as `score`; its bias, which transformers has in token classifiers only, too.

        Raises:
            ValueError: If the folder holds another model, or a head on the policy cannot be written as `score`.
        """
        if self.is_fsdp_enabled:
            raise ValueError(
                f"PPOTrainer.save_value_model({str(output_dir)!r}) under FSDP2: the trunk is in pieces. Each checkpoint's "
                f"{CRITIC_FILE} has the critic's trained weights, whole."
            )
        policy = self.accelerator.unwrap_model(self.model)
        with together(self.accelerator), put_together(policy.parameters()), taken_out(policy):
            if self.accelerator.is_main_process:
                save_value_model(self.critic, policy, self._tokenizer, output_dir, facts=self._facts())

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        self.critic.save(output_dir, writes=self.args.should_save)
        process = self.accelerator.process_index
        self.rollouts.save(output_dir, process, step=self._step, batches=self._buffered_inputs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is not None:
            process, device = self.accelerator.process_index, self.accelerator.device
            self._step, self._buffered_inputs = self.rollouts.load(checkpoint, process, device)
            self.critic.load(checkpoint)
            if self._changed_names - RATES:  # those rollouts were sampled and scored otherwise
                self._buffered_inputs = None
            if "generator" in self._changed_names:
                self.rollouts.sampling = SamplingWatch()
            if self._changed_names & {"beta", "adaptive_kl"}:
                self.rollouts.kl_control.beta = self.args.beta
        super()._load_optimizer_and_scheduler(checkpoint)

    def _save(self, output_dir=None, state_dict=None):
        with without_reference(self.model), taken_out(self.model):
            super()._save(output_dir, without_critic(state_dict))
