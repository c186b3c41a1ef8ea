"""Sample, score, select, fine-tune: RAFT's and ReST's one loop, on top of TRL's SFT."""

from functools import partial

import torch
from datasets import Dataset
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, ProgressCallback
from trl import SFTTrainer

from trl_ext.generation.protocol import Generator, Policy
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.memory_planning.memory_watch import MemoryWatch, card_of
from trl_ext.memory_planning.planning import MemoryPlan
from trl_ext.memory_planning.trainer_plan import longest_prompt, run_plan
from trl_ext.rewards.reward_callables import reward_callables
from trl_ext.rewards.weighted_rewards import Scorer
from trl_ext.self_training.grow import Grower
from trl_ext.self_training.importance import clipped_positive_loss
from trl_ext.self_training.improve_rows import ImproveRows
from trl_ext.self_training.schedule import Schedule, per_improve, steps_per_improve
from trl_ext.self_training.self_training_config import SelfTrainingConfig
from trl_ext.self_training.self_training_input import (
    check_dataset,
    check_eval_dataset,
    check_model,
    check_options,
    check_prompt_lengths,
    checked_args,
)
from trl_ext.self_training.stage_callback import StageCallback
from trl_ext.self_training.stage_loop import StageLoop
from trl_ext.self_training.stage_table import StageTable
from trl_ext.self_training.weights import exchanged, trainable_weights
from trl_ext.sequences.log_probs import completion_log_probs, label_log_probs
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.training_rows import IGNORED, TrainingRow, collate, training_row
from trl_ext.sequences.turn_end import end_with_turn
from trl_ext.trainer_kit.adapters import adapter_tensors, keep_adapters_in_fp32
from trl_ext.trainer_kit.overrides import replaced
from trl_ext.trainer_kit.run_record import model_fingerprint

SAMPLED_AT_ONCE = 16  # in the memory plan, where the sampler takes what memory allows
PLACEHOLDER: TrainingRow = {"input_ids": [0, 0], "labels": [IGNORED, 0]}


class SelfTrainingTrainer(StageLoop, SFTTrainer):
    """Fine-tunes a policy on the best of its own samples, stage by stage.

        for each stage:   Grow      K completions of each of b prompts, scored; on disk as grow-000.parquet, …
                          Improve   fine-tune on what a selection keeps; once or several times, with rising thresholds

    One epoch of TRL's SFTTrainer is one Improve, of a length that is fixed before the run; the loss runs over the
    completion's tokens, as they were sampled. A few methods are overridden, each of which calls its parent:

        create_scheduler                    let the learning rate fall within each Improve
        _get_train_sampler                  read the rows in the order that the Improve has drawn
        _set_signature_columns_if_needed    let RAFT++'s old log-probabilities reach the loss
        compute_loss                        RAFT++: the clipped importance ratio
        evaluate, evaluation_loop           score samples of held-out prompts
        log                                 add the stage and what the run has cost

    `StageLoop` has what happens between the steps; `SelfTrainingCheckpoints` adds the stage table to what Trainer saves
    and loads.

    Args:
        model: The policy: a name, a causal LM, or a `PeftModel` with a trainable adapter.
        reward_funcs: A reward or a list of them: a function in TRL's protocol (sync or async), a reward model, or
            the path of one, which is then a `LearnedReward`.
        args: A `RAFTConfig`, a `ReSTConfig` or a `SelfTrainingConfig`.
        train_dataset: Rows with `prompt`, text or messages; further columns reach the rewards. ReST mixes in what is
            in a column `completion`.
        eval_dataset: Held-out prompts likewise. Their samples' mean score is `eval_score`; where they have a column
            `completion`, its loss is `eval_loss`.
        generator: Who samples: None for the policy itself by transformers, or a `VLLMGenerator`, an
            `EndpointGenerator`, a `FileGenerator`, or anything with their method.
        reward_processing_classes: Tokenizers of the reward models, None where it is found beside the model.
        others: All else that `SFTTrainer` takes, by name: processing_class, peft_config, callbacks, optimizers, …

    Raises:
        ValueError: For bad input, with the call, what was expected, what came and what to do.
    """

    _tag_names = ["trl", "trl-ext", "self-training"]  # noqa: RUF012 - as TRL declares it
    _name = "Self-training"
    config_class = SelfTrainingConfig

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs=None,
        args: SelfTrainingConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        *,
        generator: Generator | None = None,
        reward_processing_classes=None,
        **others,
    ):
        name = type(self).__name__
        args = checked_args(args, model, others, trainer=name, config=self.config_class)
        check_dataset(train_dataset, trainer=name)
        check_eval_dataset(eval_dataset, args, trainer=name)
        adapters = adapter_tensors(model, trainer=name)
        super().__init__(
            model=model,
            args=args,
            train_dataset=Dataset.from_list([PLACEHOLDER]),
            eval_dataset=_references(eval_dataset, args),
            **others,
        )
        check_model(self.model, self.processing_class, trainer=name)
        if not isinstance(train_dataset["prompt"][0], str):
            end_with_turn(self.model, self.processing_class, call=name, **(args.chat_template_kwargs or {}))
        keep_adapters_in_fp32(self.model, adapters)
        self.schedule = self._make_schedule(len(train_dataset))
        self.train_dataset = ImproveRows(self.schedule.rows_per_improve, PLACEHOLDER)
        if args.importance_clip is not None:
            self.data_collator = partial(collate, pad_token_id=self.processing_class.pad_token_id)
        self.held_out_prompts = eval_dataset
        self.table = StageTable()
        self.initial = trainable_weights(self.model) if args.kl_coef or args.restart_from_base else None
        self._sampler = TransformersGenerator(batch_size=args.generation_batch_size)
        rewards = reward_callables(
            reward_funcs, reward_processing_classes, args, trainer=name, keep_invalid=args.invalid_scores == "drop"
        )
        self.memory = MemoryWatch(self._memory_plan, card_of(self.args.device))
        self.grower = self._make_grower(train_dataset, generator or self._sampler, rewards)
        check_options(self.args, self.schedule, self.grower.generator, trainer=name)
        for which, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            check_prompt_lengths(
                dataset, self.grower.policy, room=args.max_completion_length, trainer=name, name=which
            )
        self.fingerprint = model_fingerprint(self.model)
        self.add_callback(self.memory)
        self.add_callback(StageCallback(self))

    def _make_schedule(self, prompts: int) -> Schedule:
        args = self.args
        stage_batch_size = min(args.stage_batch_size or prompts, prompts)
        rows_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = args.improve_steps or steps_per_improve(
            stage_batch_size, epochs=args.improve_epochs, rows_per_step=rows_per_step
        )
        return Schedule(
            prompts=prompts,
            stage_batch_size=stage_batch_size,
            num_stages=args.num_stages,
            improves_per_stage=args.improves_per_stage,
            steps_per_improve=steps,
            rows_per_step=rows_per_step,
            seed=args.seed,
        )

    def _make_grower(self, dataset: Dataset, generator: Generator, rewards: list) -> Grower:
        if not rewards:
            raise ValueError(f"{type(self).__name__}(reward_funcs=None): expected a reward, or a list of them.")
        needs_log_probs = self.args.kl_coef or self.args.importance_clip is not None
        return Grower(
            args=self.args,
            schedule=self.schedule,
            dataset=dataset,
            policy=Policy(self.model, self.processing_class, self.args.chat_template_kwargs or {}),
            generator=generator,
            scorer=Scorer(rewards, self.args.reward_weights or [1.0] * len(rewards), trainer_state=lambda: self.state),
            accelerator=self.accelerator,
            log_probs=self._log_prob_columns if needs_log_probs else None,
            say=self._say,
            enter=self.memory.enter,
        )

    def _memory_plan(self) -> MemoryPlan:
        return run_plan(
            "raft",
            self.model,
            self.args,
            prompt_length=longest_prompt(self.grower.dataset, self.processing_class),
            completion_length=self.args.max_completion_length,
            batch=self.args.generation_batch_size or SAMPLED_AT_ONCE,
            rewards=self.grower.scorer.rewards,
            num_generations=self.args.num_generations,
        )

    # Samples

    def _log_prob_columns(self, samples: list[Sample]) -> dict[str, list]:
        rows = [training_row(sample["prompt_ids"], sample["completion_ids"]) for sample in samples]
        log_probs = self._log_probs(rows)
        if not self.args.kl_coef:
            return {"log_probs": log_probs}
        with exchanged(self.model, self.initial):
            initial = self._log_probs(rows)
        kl = [sum(now) - sum(then) for now, then in zip(log_probs, initial, strict=True)]
        return {"log_probs": log_probs, "initial_log_probs": initial, "kl": kl}

    def _log_probs(self, rows: list[TrainingRow]) -> list[list[float]]:
        return completion_log_probs(
            self.model,
            rows,
            pad_token_id=self.processing_class.pad_token_id,
            batch_size=self.args.per_device_eval_batch_size,
            device=self.accelerator.device,
        )

    # SFTTrainer's seams

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
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        log_probs, old = label_log_probs(model, inputs), inputs["old_log_probs"]
        own = inputs["labels"] != IGNORED
        with torch.no_grad():
            ratio = (log_probs - old).exp()[own]
            self._metrics["train"]["ratio"].append(ratio.mean().item())
            clipped = (ratio > 1 + self.args.importance_clip).float().mean().item()
            self._metrics["train"]["clip_ratio"].append(clipped)
        loss = clipped_positive_loss(log_probs, old, clip=self.args.importance_clip)
        tokens = own.sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss.masked_fill(~own, 0.0).sum() / tokens
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes
        return loss

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        if eval_dataset is None:
            return super().evaluate(None, *args, **kwargs)
        check_eval_dataset(eval_dataset, self.args, trainer=type(self).__name__)
        with replaced(self, held_out_prompts=eval_dataset):
            return super().evaluate(_references(eval_dataset, self.args), *args, **kwargs)

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss = output.metrics.get(f"{metric_key_prefix}_loss")
        if "completion" not in self.held_out_prompts.column_names:  # it was the placeholder's
            output.metrics.clear()
            self._metrics["eval"].clear()
        elif loss is not None:
            output.metrics[f"{metric_key_prefix}_perplexity"] = float(torch.tensor(loss).exp())
        with self.compute_loss_context_manager():
            held_out = self.grower.held_out(self.held_out_prompts, self._sampler)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in held_out.items()})
        return output

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


def _references(dataset: Dataset | None, args: SelfTrainingConfig) -> Dataset | None:
    """What SFTTrainer evaluates: reference answers where there are any, else a row that stands for them."""
    if dataset is None:
        return None
    if "completion" not in dataset.column_names:
        return Dataset.from_list([PLACEHOLDER])
    references = dataset.select_columns(["prompt", "completion"])
    if args.chat_template_kwargs:
        references = references.add_column("chat_template_kwargs", [args.chat_template_kwargs] * len(references))
    return references
