"""Sample, score, select, fine-tune: RAFT's and ReST's one loop, on top of TRL's SFT."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    TrainerCallback,
)
from trl import SFTTrainer

from trl_ext.generation.given_generator import checked_generator
from trl_ext.generation.protocol import Generator, Policy, passes_policy
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.memory_planning.memory_watch import MemoryWatch, card_of
from trl_ext.memory_planning.planning import MemoryPlan
from trl_ext.memory_planning.trainer_plan import longest_prompt, run_plan
from trl_ext.rewards.checked_reward import reward_name
from trl_ext.rewards.reward_callables import Reward, reward_callables
from trl_ext.rewards.reward_columns import check_reward_columns
from trl_ext.rewards.weighted_rewards import Scorer
from trl_ext.self_training.grow import Grower, schedule_of
from trl_ext.self_training.held_out import PLACEHOLDER, held_out_scores, references
from trl_ext.self_training.importance import importance_loss
from trl_ext.self_training.improve_rows import ImproveRows
from trl_ext.self_training.papers import papers_of
from trl_ext.self_training.run_folder import INITIAL, RunFolder, taken_names
from trl_ext.self_training.schedule import per_improve
from trl_ext.self_training.self_training_config import RENAMED, SelfTrainingConfig
from trl_ext.self_training.self_training_engines import check_evaluates, shards_policy
from trl_ext.self_training.self_training_input import (
    check_given,
    check_model,
    check_rows,
    check_run,
    checked_args,
    read_eval_dataset,
)
from trl_ext.self_training.self_training_record import FIXED, HARMLESS, grow_record
from trl_ext.self_training.stage_loop import StageLoop
from trl_ext.self_training.stage_prompts import SetPrompts, StreamPrompts, stage_prompts
from trl_ext.self_training.stage_table import TABLE, StageTable
from trl_ext.self_training.weights import trainable_weights
from trl_ext.sequences.answer_rows import check_answers
from trl_ext.sequences.saved_policies import policy_at
from trl_ext.sequences.training_rows import IGNORED, collate
from trl_ext.sequences.turn_end import end_with_turn
from trl_ext.trainer_kit.adapters import adapter_tensors, keep_4_bit_layout, keep_adapters_in_fp32
from trl_ext.trainer_kit.checkpoints import ResumableTrainer
from trl_ext.trainer_kit.counted_once import CountedOnce
from trl_ext.trainer_kit.finite_steps import FiniteSteps
from trl_ext.trainer_kit.head_tiles import tiles_for
from trl_ext.trainer_kit.overrides import replaced
from trl_ext.trainer_kit.rates import RATES
from trl_ext.trainer_kit.run_record import by_new_names
from trl_ext.trainer_kit.trl_versions import count_tokens
from trl_ext.trainer_kit.whole_copies import WholeCopy

Config = TypeVar("Config", bound=SelfTrainingConfig)
SAMPLED_AT_ONCE = 16  # in the memory plan, where the sampler takes what memory allows


class SelfTrainingTrainer(CountedOnce, FiniteSteps, ResumableTrainer, SFTTrainer, Generic[Config]):
    """Fine-tunes a policy on the best of its own samples, stage by stage.

        for each stage:   Grow      K completions of each of b prompts, scored; on disk as grow-000.parquet, …
                          Improve   fine-tune on what a selection keeps; once or several times, with rising thresholds

    Where everything is kept (K = 1, or a threshold below every score) it is TRL's SFT on the policy's own samples.

    One epoch of TRL's SFTTrainer is one Improve, of a length that is fixed before the run; the loss runs over the
    completion's tokens, as they were sampled. A few methods are overridden, each of which calls its parent:

        train, _save_…, _load_optimizer_and_scheduler    a folder belongs to one run; checkpoints hold the stage table
        create_scheduler                    let the learning rate fall within each Improve
        _get_train_sampler                  read the rows in the order that the Improve has drawn
        _set_signature_columns_if_needed    let RAFT++'s old log-probabilities reach the loss
        compute_loss                        RAFT++: the clipped importance ratio; on a CPU, narrower tiles of the vocabulary
        evaluate, evaluation_loop           score samples of held-out prompts
        log                                 add the stage and what the run has cost

    Its parts: `grower` samples, scores and selects; `loop` is a callback, for what happens between the steps; `table`
    says what each Improve did; `run_folder` knows whose the folder is.

    Args:
        model: The policy: a name or path, also that of an adapter, a causal LM, or a `PeftModel` with a trainable adapter.
        reward_funcs: A reward or a list of them: a function in TRL's protocol (sync or async), a reward model, or
            the path of one, which is then a `LearnedReward`.
        args: A `RAFTConfig`, a `ReSTConfig` or a `SelfTrainingConfig`.
        train_dataset: Rows with `prompt`, text or messages; further columns reach the rewards. ReST mixes in what is
            in a column `completion`. A stream (IterableDataset) is read as it comes, `stage_batch_size` prompts a stage,
            and anew where it ends.
        eval_dataset: Held-out prompts likewise. Their samples' mean score is `eval_score`; where they have a column
            `completion`, its loss is `eval_loss`.
        processing_class, callbacks, optimizers, optimizer_cls_and_kwargs, quantization_config, peft_config: As in
            `SFTTrainer`; `optimizers` without a scheduler. What else that takes is refused by name.
        generator: Who samples: None for the policy itself by transformers, or a `VLLMGenerator`, an
            `EndpointGenerator`, a `FileGenerator`, or anything with their method.
        reward_processing_classes: Tokenizers of the reward models, None where it is found beside the model.

    Raises:
        ValueError: For bad input, with the call, what was expected, what came and what to do.
        FloatingPointError: In `train`, where a loss or gradient is not finite; it says from which samples.
    """

    _tag_names = ["trl", "trl-ext", "self-training"]  # noqa: RUF012 - as TRL declares it
    _shown = ("stage", "grow/score", "grow/score_kept", "grow/kept", "loss", "score")
    _name = "Self-training"
    config_class = SelfTrainingConfig
    _harmless, _needs_record = HARMLESS, True
    _reads_together = "All processes read its Grows, best weights and stage records"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: Reward | Sequence[Reward] | None = None,
        args: Config | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[Optimizer], dict[str, Any]] | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        *,
        generator: Generator | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        **refused: None,
    ):
        name = type(self).__name__
        check_given(reward_funcs, optimizers, refused, trainer=name)
        model, processing_class = policy_at(model, processing_class, args, quantization_config, trainer=name)
        args = checked_args(args, model, peft_config, trainer=name, config=self.config_class)
        prompts = stage_prompts(train_dataset, count=args.stage_batch_size, trainer=name, completions=args.mix_dataset)
        eval_dataset = read_eval_dataset(eval_dataset, args, trainer=name)
        adapters = adapter_tensors(model, trainer=name)
        super().__init__(
            model=model,
            args=args,
            train_dataset=Dataset.from_list([PLACEHOLDER]),
            eval_dataset=references(eval_dataset, args),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        copy = self._take_policy(adapters, prompts.known)
        self.reward_funcs = reward_callables(
            reward_funcs, reward_processing_classes, args, trainer=name, keep_invalid=args.invalid_scores == "drop"
        )
        self.memory = MemoryWatch(self._memory_plan, card_of(args.device))
        self.held_out_prompts = eval_dataset
        self.sampler = TransformersGenerator(batch_size=args.generation_batch_size)
        self.grower = self._make_grower(prompts, generator, self.reward_funcs, copy)
        check_run(self.grower, eval_dataset, trainer=name)
        self._check_answers(prompts.known if args.mix_dataset else None, f"{name}(train_dataset=…)")
        self._check_answers(eval_dataset, f"{name}(eval_dataset=…)")
        self.schedule, self.table = self.grower.schedule, StageTable()
        self.run_folder = RunFolder(self.grower)
        self.train_dataset = ImproveRows(self.schedule.rows_per_improve, PLACEHOLDER)
        if args.importance_clip is not None:
            self.data_collator = partial(collate, pad_token_id=self.processing_class.pad_token_id)
        self.loop = StageLoop(self.grower, self.train_dataset, self.table, self.log, self._pass_over, name)
        self.add_callback(self.memory)
        self.add_callback(self.loop)
        self._note_beginning()

    def _take_policy(self, adapters: dict[str, Tensor], dataset: Dataset) -> WholeCopy | None:
        """Check the policy, and make it ready to be trained; `adapters`: their tensors before TRL cast them."""
        name, is_cut = type(self).__name__, shards_policy(self)
        check_model(self.model, self.processing_class, trainer=name)
        if not isinstance(dataset["prompt"][0], str):
            end_with_turn(self.model, self.processing_class, call=name, **(self.args.chat_template_kwargs or {}))
        keep_adapters_in_fp32(self.model, adapters)
        keep_4_bit_layout(self.model)
        return WholeCopy(self.model) if is_cut else None

    def _check_answers(self, dataset: Dataset | None, call: str) -> None:
        policy = self.grower.policy
        check_answers(dataset, policy.tokenizer, self.model.config, policy.chat_template_kwargs, call=call)

    def _check_streamed(self, dataset: Dataset) -> None:
        """Raise a ValueError for prompts of a stage, which are known only now, as for those that were known before the run."""
        call = f"{type(self).__name__}(train_dataset=…)"
        check_rows(self.grower, dataset, call=call)
        self._check_answers(dataset if self.args.mix_dataset else None, call)

    def _make_grower(
        self,
        prompts: SetPrompts | StreamPrompts,
        generator: Generator | None,
        rewards: list[Callable],
        copy: WholeCopy | None,
    ) -> Grower:
        args, call = self.args, f"{type(self).__name__}(generator=…)"
        returns = args.beta or args.restart_from_base
        return Grower(
            args=args,
            schedule=schedule_of(args, prompts.count),
            prompts=prompts,
            policy=Policy(self.model, self.processing_class, args.chat_template_kwargs or {}),
            copy=copy,
            generator=self.sampler if generator is None else checked_generator(generator, call=call),
            scorer=Scorer(rewards, args.reward_weights or [1.0] * len(rewards), trainer_state=lambda: self.state),
            accelerator=self.accelerator,
            initial=trainable_weights(self.model) if returns else None,
            precision=self.compute_loss_context_manager,
            say=self._say,
            between_parts=self._between_parts,
            enter=self._enter,
            check=self._check_streamed,
        )

    def _memory_plan(self) -> MemoryPlan:
        return run_plan(
            "raft",
            self.model,
            self.args,
            prompt_length=longest_prompt(self.grower.dataset, self.processing_class, self.args.chat_template_kwargs),
            completion_length=self.args.max_completion_length,
            batch=self.args.generation_batch_size or SAMPLED_AT_ONCE,
            rewards=self.grower.scorer.rewards,
            num_generations=self.args.num_generations,
            **self._who_samples(),
        )

    def _who_samples(self) -> dict[str, Any]:
        """What the plan is told of it: whether samples come from elsewhere, and the policy is passed all the same."""
        if passes_policy(self.grower.generator):
            return {"generator": "vllm" if self.grower.generator.name == "vllm" else "transformers"}
        passed = self.grower.needs_log_probs or self.held_out_prompts is not None
        return {"generator": "endpoint", "policy_passes": passed}

    # A run, its folder and its checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """A whole run: all stages.

        Args:
            resume_from_checkpoint: True goes on with whatever of this run is in `output_dir`: from its newest complete
                checkpoint if there is one, and with all that was sampled and scored; where there is nothing yet, it
                begins. So a script that may be killed can always pass True. Or the path of one of its checkpoints. A
                ValueError if the folder holds another run.
        """
        self.table.clear()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _is_over(self):
        return super()._is_over() or self.loop.is_over(self.state.global_step)

    def _steps_to_know(self):
        schedule = self.grower.schedule
        return schedule.steps_per_improve * schedule.improves_per_stage

    def _learned_from(self):
        return {"prompts": self.grower.dataset, "held out": self.held_out_prompts}

    def _scored_by(self):
        return [reward_name(reward) for reward in self.reward_funcs]

    def _settings_of(self):
        return papers_of(self.args)

    def _recorded(self):
        return grow_record(self.grower)

    def _fixed(self):
        return super()._fixed() | FIXED

    def _evaluation_decides(self):
        return bool(self.args.keep_best or self.args.improve_patience)

    def _older(self, record):
        record = by_new_names(record, RENAMED)
        return {"trainer": type(self).__name__} | record if "reward_funcs" in record else record

    def _run_files(self, folder, *, recorded):
        files = taken_names(folder)
        return [name for name in files if name != INITIAL] if recorded else files  # those alone are no run yet

    def _check_beginning(self, checkpoint, call):
        self.run_folder.check(checkpoint, has_trained=self.loop.has_trained, call=call)

    def _open(self, resume):
        checkpoint = super()._open(resume)
        changed = self._changes(self._before) if self._run and self._before else []  # since parts of a Grow were made
        anew = any(change.name not in RATES for change in changed)
        goes_on = checkpoint is not None or self._before is not None
        self.run_folder.begin(checkpoint, goes_on=goes_on, anew=anew)
        return checkpoint

    def _push_from_checkpoint(self, checkpoint_folder):
        if self.accelerator.is_main_process and self.args.hub_strategy in ("checkpoint", "all_checkpoints"):
            self.run_folder.complete(Path(checkpoint_folder))
        super()._push_from_checkpoint(checkpoint_folder)

    def _checkpoint_files(self):
        return (*super()._checkpoint_files(), TABLE)

    def _checkpoint_kind(self):
        return "RAFT or ReST"

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            self.table.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is not None:
            self.table.load(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)

    # An Improve, as an epoch of SFTTrainer

    def create_scheduler(self, num_training_steps, optimizer=None):
        scheduler = super().create_scheduler(self.schedule.steps_per_improve, optimizer)
        if not isinstance(scheduler, LambdaLR):
            raise ValueError(
                f"{type(self).__name__}, lr_scheduler_type={str(self.args.lr_scheduler_type)!r}: expected a schedule that "
                "is a function of the step, such as 'linear', 'cosine' or 'constant', to begin anew in each Improve."
            )
        factor = self.args.improve_lr_factor
        scheduler.lr_lambdas = [per_improve(decay, self.schedule, factor=factor) for decay in scheduler.lr_lambdas]
        return scheduler

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if "old_log_probs" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "old_log_probs"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "old_log_probs" not in inputs:
            with tiles_for(self.accelerator.device):
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, metrics = importance_loss(model, inputs, clip=self.args.importance_clip)
        if self.model.training:
            count_tokens(self, inputs["attention_mask"])
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        if num_items_in_batch is None:
            return loss / (inputs["labels"] != IGNORED).sum()
        mean_over_processes = self.args.average_tokens_across_devices  # which DDP takes of the gradients
        return loss / num_items_in_batch * (self.accelerator.num_processes if mean_over_processes else 1)

    def _loss_name(self):
        return "nll" if self.args.importance_clip is None else "importance loss"

    # Held-out prompts

    def _check_evaluates(self) -> None:
        check_evaluates(self)

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        if eval_dataset is None:
            return super().evaluate(None, *args, **kwargs)
        eval_dataset = read_eval_dataset(eval_dataset, self.args, trainer=type(self).__name__)
        call = f"{type(self).__name__}.evaluate(eval_dataset=…)"
        check_reward_columns(self.reward_funcs, eval_dataset, call=call)
        self._check_answers(eval_dataset, call)
        with replaced(self, held_out_prompts=eval_dataset):
            return super().evaluate(references(eval_dataset, self.args), *args, **kwargs)

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss = output.metrics.get(f"{metric_key_prefix}_loss")
        if "completion" not in self.held_out_prompts.column_names:  # it was the placeholder's
            output.metrics.clear()
            self._metrics["eval"].clear()
        elif loss is not None:
            output.metrics[f"{metric_key_prefix}_perplexity"] = float(torch.tensor(loss).exp())
        scores = held_out_scores(self.held_out_prompts, self.grower, self.sampler)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in scores.items()})
        return output

    # What is said

    def log(self, logs, start_time=None):
        if self.is_in_train and self.table.improves:
            logs.setdefault("stage", self.table.improves[-1].stage)
        logs["cost"] = self.table.cost
        super().log(logs, start_time)

    def _say(self, text: str) -> None:
        """Show on the progress bar what is going on."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                callback.training_bar.set_description(text)

    def _enter(self, phase: str) -> None:
        self.memory.enter(phase)
        if self._stop is not None:
            self._stop.in_parts = phase != "train"

    def _pass_over(self, steps: int) -> None:
        self._globalstep_last_logged += steps  # the mean loss is over steps that were made
