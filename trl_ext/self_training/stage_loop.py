"""What happens between the steps of SFTTrainer: Grow, selection, restarts, best weights, and when a run ends."""

import warnings
from pathlib import Path

from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.grow_summary import grow_cost, grow_metrics, kept_texts, mean_score, nothing_kept
from trl_ext.self_training.monitors import diversity_warning, is_level
from trl_ext.self_training.run_state import SelfTrainingCheckpoints
from trl_ext.self_training.stage_table import ImproveEntry
from trl_ext.self_training.weights import load_weights, save_weights, set_weights, trainable_weights
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.training_rows import TrainingRow, training_row
from trl_ext.trainer_kit.whole_files import PARTIAL

INITIAL = "initial_weights.safetensors"


class StageLoop(SelfTrainingCheckpoints):
    """Mixin before SFTTrainer: what `StageCallback` calls when an Improve, which is an epoch of Trainer, begins and ends.

    Reads the trainer's `schedule`, `grower`, `table`, `train_dataset` (an `ImproveRows`), and the weights that the run
    began with, `initial`, where it returns to them. An Improve is `skipping` where no row is left to learn from, or the
    run has `ended`: Trainer makes one step before it looks, which then moves nothing.
    """

    skipping = ended = False

    def begin_run(self) -> None:
        """Keep the weights that the run begins with, if it returns to them."""
        if self.accelerator.is_main_process:
            for leftover in Path(self.args.output_dir).rglob(f"*{PARTIAL}"):  # of a killed run
                leftover.unlink()
        self.accelerator.wait_for_everyone()
        path = Path(self.args.output_dir) / INITIAL
        if self.initial is None:
            return
        if self.goes_on and path.is_file():
            self.initial = self.grower.initial = load_weights(path)
        elif self.accelerator.is_main_process:
            save_weights(path, self.initial)
        self.accelerator.wait_for_everyone()

    def begin_improve(self) -> None:
        """Grow if this is a stage's first Improve, and set the rows that it learns from."""
        step = self.state.global_step
        improve, i = self.schedule.place(step)
        stage, is_new = improve // self.schedule.improves_per_stage, step % self.schedule.steps_per_improve == 0
        if is_new and improve:
            self._take_best(improve - 1)
        self.ended = self.skipping = is_new and i == 0 and self._was_level(stage)
        if self.ended:  # the run that is gone on with has ended here
            self.control.should_training_stop = True
            return
        files = self.grower.grow(stage)
        if is_new and i == 0:
            self._begin_stage(stage, files)
        samples = files.kept_samples(i)
        if is_new:
            passes = self.schedule.rows_per_improve / len(samples) if samples else 0.0
            self.table.improves.append(ImproveEntry(improve, stage, step, len(samples), passes))
            self.log({"improve/kept": len(samples), "improve/passes": passes})
        self._set_rows(files, samples, improve, i)

    def _begin_stage(self, stage: int, files: GrowFiles) -> None:
        if self.args.restart_from_base:
            set_weights(self.model, self.initial)
        if self.args.fresh_optimizer or self.args.restart_from_base:
            self.optimizer.state.clear()
        passes = 2 if self.args.kl_coef else int(self.args.importance_clip is not None)
        self.table.cost += grow_cost(files, self.grower.generator.name, passes=passes)
        metrics = grow_metrics(files) | {"stage": stage}
        metrics |= {name: sum(values) / len(values) for name, values in self.grower.scorer.metrics.items()}
        self.grower.scorer.metrics.clear()
        self.log(metrics)
        if stage:
            warning = diversity_warning(kept_texts(self.grower.files(stage - 1)), kept_texts(files))
            if warning and self.accelerator.is_main_process:
                warnings.warn(f"{type(self).__name__}, stage {stage + 1}: {warning}", stacklevel=2)

    def _set_rows(self, files: GrowFiles, samples: list[Sample], improve: int, i: int) -> None:
        stage = f"stage {improve // self.schedule.improves_per_stage + 1}/{self.args.num_stages}"
        if not samples and i == 0:
            call = f"{type(self).__name__}, selection={self.args.selection!r}, thresholds={self.args.thresholds}"
            raise ValueError(f"{call}: {nothing_kept(files)}")
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

    def end_step(self) -> None:
        """Count what a step has cost; leave an Improve that has nothing to learn from."""
        self.has_trained = True
        if self.skipping:
            self.skipping = False
            if self.ended:
                self.state.global_step -= 1  # it was none
            else:
                self._jump_to_end()
            return
        size = self.schedule.rows_per_step
        last = (self.state.global_step - 1) % self.schedule.steps_per_improve
        self.table.cost += 3 * self.train_dataset.tokens(range(last * size, (last + 1) * size))

    def take_note(self, metrics: dict[str, float]) -> None:
        """Keep the weights of an Improve's best held-out score, and end it when the score has stopped rising."""
        watched = (self.args.keep_best or self.args.improve_patience) and "eval_score" in metrics
        if not self.table.improves or not watched:
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
