"""Sample, score, select, fine-tune: RAFT's and ReST's one loop, on top of TRL's SFT."""

import warnings
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, ProgressCallback
from trl import SFTTrainer

from trl_ext.adapters import adapter_tensors, keep_adapters_in_fp32
from trl_ext.overrides import replaced
from trl_ext.rewards.reward_callables import reward_callables
from trl_ext.self_training.arguments import check_dataset, check_eval_dataset, check_model, checked_args
from trl_ext.self_training.generation import Generator, Policy, Sample
from trl_ext.self_training.grow import grow_cost, grow_metrics, kept_samples, mean_score
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.grower import Grower
from trl_ext.self_training.importance import clipped_positive_loss
from trl_ext.self_training.log_probs import completion_log_probs, label_log_probs
from trl_ext.self_training.monitors import diversity_warning, is_level
from trl_ext.self_training.quiet import without_dataset_bars
from trl_ext.self_training.run_state import SelfTrainingCheckpoints
from trl_ext.self_training.schedule import Schedule, per_improve, steps_per_improve
from trl_ext.self_training.scoring import Scorer
from trl_ext.self_training.self_training_config import SelfTrainingConfig
from trl_ext.self_training.stage_callback import StageCallback
from trl_ext.self_training.stage_table import ImproveEntry, StageTable
from trl_ext.self_training.training_rows import IGNORED, ImproveRows, TrainingRow, collate, training_row
from trl_ext.self_training.transformers_generator import TransformersGenerator
from trl_ext.self_training.weights import exchanged, load_weights, save_weights, set_weights, trainable_weights

PLACEHOLDER: TrainingRow = {"input_ids": [0, 0], "labels": [IGNORED, 0]}
INITIAL = "initial_weights.safetensors"


class SelfTrainingTrainer(SelfTrainingCheckpoints, SFTTrainer):
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

    `SelfTrainingCheckpoints` adds the stage table to what Trainer saves and loads.

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
            eval_dataset=_references(eval_dataset),
            **others,
        )
        check_model(self.model, self.processing_class, trainer=name)
        keep_adapters_in_fp32(self.model, adapters)
        self.schedule = self._make_schedule(len(train_dataset))
        self.train_dataset = ImproveRows(self.schedule.rows_per_improve, PLACEHOLDER)
        if args.importance_clip is not None:
            self.data_collator = partial(collate, pad_token_id=self.processing_class.pad_token_id)
        self.held_out_prompts = eval_dataset
        self.table, self.skipping = StageTable(), False
        self._initial = trainable_weights(self.model) if args.kl_coef or args.restart_from_base else None
        self._sampler = TransformersGenerator(batch_size=args.generation_batch_size)
        rewards = reward_callables(
            reward_funcs, reward_processing_classes, args, trainer=name, keep_invalid=args.invalid_scores == "drop"
        )
        self.grower = self._make_grower(train_dataset, generator or self._sampler, rewards)
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
            scorer=Scorer(rewards, self.args.reward_weights or [1.0] * len(rewards)),
            accelerator=self.accelerator,
            tokenise=self._tokenise,
            log_probs=self._log_prob_columns if needs_log_probs else None,
            say=self._say,
        )

    # Stages

    def begin_run(self) -> None:
        """Keep the weights that the run begins with, if it returns to them."""
        path = Path(self.args.output_dir) / INITIAL
        if self._initial is None:
            return
        if path.is_file():
            self._initial = load_weights(path)
        elif self.accelerator.is_main_process:
            save_weights(path, self._initial)
        self.accelerator.wait_for_everyone()

    def begin_improve(self) -> None:
        """Grow if this is a stage's first Improve, and set the rows that it learns from."""
        step = self.state.global_step
        improve, i = self.schedule.place(step)
        stage, is_new = improve // self.schedule.improves_per_stage, step % self.schedule.steps_per_improve == 0
        if is_new and improve:
            self._take_best(improve - 1)
        self.skipping = is_new and i == 0 and self._was_level(stage)
        if self.skipping:  # the run that was killed had ended here
            self.control.should_training_stop = True
            return
        with self.compute_loss_context_manager():
            files = self.grower.grow(stage)
        self.accelerator.wait_for_everyone()
        if is_new and i == 0:
            self._begin_stage(stage, files)
        samples = kept_samples(files, i)
        if is_new:
            passes = self.schedule.rows_per_improve / max(len(samples), 1)
            self.table.improves.append(ImproveEntry(improve, stage, step, len(samples), passes))
        self._set_rows(files, samples, improve, i)

    def _begin_stage(self, stage: int, files: GrowFiles) -> None:
        if self.args.restart_from_base:
            set_weights(self.model, self._initial)
        if self.args.fresh_optimizer or self.args.restart_from_base:
            self.optimizer.state.clear()
        passes = 2 if self.args.kl_coef else int(self.args.importance_clip is not None)
        self.table.cost += grow_cost(files, self.grower.generator.name, passes=passes)
        metrics = grow_metrics(files) | {"stage": stage}
        metrics |= {name: sum(values) / len(values) for name, values in self.grower.scorer.metrics.items()}
        self.grower.scorer.metrics.clear()
        self.log(metrics)
        if stage:
            before = grow_metrics(self.grower.files(stage - 1))["grow/distinct_2"]
            warning = diversity_warning(before, metrics["grow/distinct_2"])
            if warning and self.accelerator.is_main_process:
                warnings.warn(f"{type(self).__name__}, stage {stage + 1}: {warning}", stacklevel=2)

    def _set_rows(self, files: GrowFiles, samples: list[Sample], improve: int, i: int) -> None:
        stage = f"stage {improve // self.schedule.improves_per_stage + 1}/{self.args.num_stages}"
        if not samples and i == 0:
            raise ValueError(self._nothing_kept(files))
        if not samples:
            self.skipping = True
            self._say(f"{stage}: nothing is above threshold {self.args.thresholds[i]}")
            return
        rows = [self._row(sample) for sample in samples]
        self.train_dataset.set_rows(rows, self.schedule.row_order(improve, len(rows)))
        self._say(f"{stage}, Improve {i + 1}/{self.schedule.improves_per_stage}")

    def _row(self, sample: Sample) -> TrainingRow:
        row = training_row(sample["prompt_ids"], sample["completion_ids"])
        if self.args.importance_clip is not None:
            row["old_log_probs"] = sample["log_probs"]
        return row

    def _nothing_kept(self, files: GrowFiles) -> str:
        metrics = grow_metrics(files)
        counts = {name: metrics[f"grow/{name}"] for name in ("truncated", "duplicates", "unscored")}
        highest = metrics.get("grow/score_max")
        return (
            f"{type(self).__name__}, selection={self.args.selection!r}, thresholds={self.args.thresholds}: nothing of "
            f"{files.finished.name} is kept. The highest score seen is {highest if highest is None else f'{highest:g}'}"
            f"; left out beforehand: {counts}. The Grow stays: lower the thresholds (or change score_map), or raise "
            "max_completion_length where most is truncated, and start in another output_dir with "
            f"generator=FileGenerator({str(files.finished)!r})."
        )

    def end_step(self) -> None:
        """Count what a step has cost; leave an Improve that has nothing to learn from."""
        if self.skipping:
            self.skipping = False
            self._jump_to_end()
            return
        size = self.schedule.rows_per_step
        last = (self.state.global_step - 1) % self.schedule.steps_per_improve
        self.table.cost += 3 * self.train_dataset.tokens(range(last * size, (last + 1) * size))

    def take_note(self, metrics: dict[str, float]) -> None:
        """Keep the weights of an Improve's best held-out score, and end it when the score has stopped rising."""
        if not self.table.improves or not (self.args.keep_best or self.args.improve_patience):
            return
        entry, step = self.table.improves[-1], self.state.global_step
        if entry.evaluated(metrics["eval_score"], step):
            if self.args.keep_best and self.accelerator.is_main_process:
                save_weights(self._best_path(entry), trainable_weights(self.model))
        elif 0 < self.args.improve_patience <= entry.evaluations_since:
            entry.stopped_at = step
            self._jump_to_end()

    def _jump_to_end(self) -> None:
        """Leave the current Improve: the run's step becomes the one at which the next begins.

        So steps divide into Improves as they were planned, and a checkpoint that is written now resumes at the next.
        """
        state, length = self.state, self.schedule.steps_per_improve
        end = -(-state.global_step // length) * length
        for _ in range(end - state.global_step):
            self.lr_scheduler.step()
        self._globalstep_last_logged += end - state.global_step  # the mean loss is over steps that were made
        state.global_step, state.epoch = end, end / length
        self.control.should_epoch_stop = True

    def _best_path(self, entry: ImproveEntry) -> Path:
        return Path(self.args.output_dir) / f"best-improve-{entry.improve:03d}-step-{entry.best_step}.safetensors"

    def _take_best(self, improve: int) -> None:
        entry = self.table.entry(improve)
        last = (entry.stopped_at or (improve + 1) * self.schedule.steps_per_improve) if entry else None
        if not self.args.keep_best or entry is None or entry.best_step in (None, last):
            return
        path = self._best_path(entry)
        if not path.is_file():
            raise ValueError(
                f"{type(self).__name__}: {str(path)!r}, the best weights of Improve {improve + 1}, are gone; an older "
                "checkpoint needs files that a newer one has replaced. Resume with resume_from_checkpoint=True."
            )
        set_weights(self.model, load_weights(path))

    def tidy_best(self) -> None:
        """Remove best weights that neither this checkpoint nor a later one needs."""
        if self.accelerator.is_main_process and self.args.keep_best:
            needed = {self._best_path(entry) for entry in self.table.improves[-2:]}
            for path in set(Path(self.args.output_dir).glob("best-improve-*.safetensors")) - needed:
                path.unlink()

    def is_level(self) -> bool:
        """Whether the run ends with the stage that ends now, because its mean scores have not risen for some."""
        stages, rest = divmod(
            self.state.global_step, self.schedule.steps_per_improve * self.schedule.improves_per_stage
        )
        return rest == 0 and self._was_level(stages)

    def _was_level(self, stages: int) -> bool:
        files = [self.grower.files(stage) for stage in range(stages)]
        return 0 < self.args.level_stages < stages and is_level(
            [mean_score(file) for file in files], stages=self.args.level_stages
        )

    def end_run(self) -> None:
        """Give the model the best weights of the last Improve."""
        if self.table.improves and not self.args.load_best_model_at_end:
            self._take_best(len(self.table.improves) - 1)

    # Samples

    def _tokenise(self, samples: list[Sample]) -> list[Sample]:
        """Give token ids to samples without, as SFTTrainer does; a sample that did not end gets no end token."""
        missing = [sample for sample in samples if sample["completion_ids"] is None]
        if not missing:
            return samples
        rows = [{"prompt": sample["prompt"], "completion": sample["completion"]} for sample in missing]
        if self.args.chat_template_kwargs:
            rows = [row | {"chat_template_kwargs": self.args.chat_template_kwargs} for row in rows]
        with without_dataset_bars():
            prepared = self._prepare_dataset(
                Dataset.from_list(rows), self.processing_class, self.args, False, None, "samples"
            )
        for sample, row in zip(missing, prepared, strict=True):
            length = sum(label == IGNORED for label in row["labels"])
            ids = row["input_ids"]
            is_cut = not sample["ended"] and ids[-1] == self.processing_class.eos_token_id
            sample["prompt_ids"], sample["completion_ids"] = ids[:length], ids[length : len(ids) - is_cut]
        return samples

    def _log_prob_columns(self, samples: list[Sample]) -> dict[str, list]:
        rows = [training_row(sample["prompt_ids"], sample["completion_ids"]) for sample in samples]
        log_probs = self._log_probs(rows)
        if not self.args.kl_coef:
            return {"log_probs": log_probs}
        with exchanged(self.model, self._initial):
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
            return super().evaluate(_references(eval_dataset), *args, **kwargs)

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


def _references(dataset: Dataset | None) -> Dataset | None:
    """What SFTTrainer evaluates: reference answers where there are any, else a row that stands for them."""
    if dataset is None:
        return None
    if "completion" not in dataset.column_names:
        return Dataset.from_list([PLACEHOLDER])
    return dataset.select_columns(["prompt", "completion"])
