"""What happens between the steps of SFTTrainer: Grow, the rows of each Improve, restarts, best weights, and when a run ends."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy

from trl_ext.self_training.grow import Grower
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.grow_summary import KeptTexts, grow_cost, grow_metrics, mean_score, nothing_kept
from trl_ext.self_training.improve_rows import ImproveRows, KeptRows
from trl_ext.self_training.monitors import diversity_warning, is_level
from trl_ext.self_training.stage_table import ImproveEntry, StageTable, saved_tables
from trl_ext.self_training.weights import (
    best_path,
    put_back_best,
    remove_best,
    save_weights,
    set_weights,
    trainable_weights,
)
from trl_ext.trainer_kit.processes import from_main


class GrowSays(NamedTuple):
    """What is logged of a Grow, what it has cost, and what to warn of."""

    metrics: dict[str, float]
    cost: int
    warning: str | None


@dataclass(eq=False)
class StageLoop(TrainerCallback):
    """Makes an Improve of each of Trainer's epochs, with what Trainer hands over at its events.

    An Improve is `skipping` where no row is left to learn from: Trainer makes one step before it looks, which then moves
    nothing.

    Args:
        grower: Makes the Grows, by the run's schedule.
        rows: What SFTTrainer reads; set for each Improve.
        table: What each Improve did; filled here.
        log: Logs metrics.
        pass_over: Told how many steps are left out, which the mean loss must not count.
        trainer: Its name, for messages.
    """

    grower: Grower
    rows: ImproveRows
    table: StageTable
    log: Callable[[dict[str, float]], None]
    pass_over: Callable[[int], None]
    trainer: str

    training = has_trained = skipping = False

    def __post_init__(self):
        self.args, self.schedule, self.say = self.grower.args, self.grower.schedule, self.grower.say

    def on_train_begin(self, args, state, control, **kwargs):
        self.training = True

    # An Improve begins

    def on_epoch_begin(self, args, state, control, *, model, optimizer, **kwargs):
        step = state.global_step
        improve, i = self.schedule.place(step)
        stage = improve // self.schedule.improves_per_stage
        is_new = step % self.schedule.steps_per_improve == 0  # else a run goes on in the middle of it
        if is_new and improve:
            self._go_back_to_best(model)
        self.skipping = False
        if self.is_over(step):  # the run that is gone on with has ended here
            control.should_training_stop = True
            return
        self.rows.release()
        files = self.grower.grow(stage)
        if is_new and i == 0:
            self._begin_stage(stage, files, model, optimizer)
        kept = self.grower.kept_rows(stage, i)
        if is_new:
            passes = self.schedule.rows_per_improve / len(kept) if kept else 0.0
            self.table.improves.append(ImproveEntry(improve, stage, step, len(kept), passes))
            self.log({"improve/kept": len(kept), "improve/passes": passes})
        if not kept and i == 0:
            call = f"{self.trainer}, selection={args.selection!r}, thresholds={args.thresholds}"
            raise ValueError(f"{call}: {nothing_kept(files)}")
        self._set_rows(kept, improve)

    def _begin_stage(self, stage: int, files: GrowFiles, model: nn.Module, optimizer: Optimizer) -> None:
        if self.args.restart_from_base:
            set_weights(model, self.grower.initial)
        if self.args.fresh_optimizer or self.args.restart_from_base:
            optimizer.state.clear()
        said = from_main(self.grower.accelerator, lambda: self._read_grow(stage, files))
        self.table.cost += said.cost
        logged = self.grower.scorer.metrics
        metrics = {name: sum(values) / len(values) for name, values in logged.items()}
        self.log(said.metrics | {"stage": stage} | metrics)
        logged.clear()
        if said.warning and self.grower.accelerator.is_main_process:
            warnings.warn(f"{self.trainer}, stage {stage + 1}: {said.warning}", stacklevel=2)

    def _read_grow(self, stage: int, files: GrowFiles) -> GrowSays:
        """What a finished Grow says; it is read by one process for all."""
        passes = 2 if self.args.beta else int(self.args.importance_clip is not None)
        cost = grow_cost(files, self.grower.generator.name, passes=passes)
        earlier = KeptTexts(self.grower.files(stage - 1)) if stage else None
        warning = None if earlier is None else diversity_warning(earlier, KeptTexts(files))
        return GrowSays(grow_metrics(files), cost, warning)

    def _set_rows(self, kept: KeptRows, improve: int) -> None:
        stage, i = divmod(improve, self.schedule.improves_per_stage)
        where = f"stage {stage + 1}/{self.args.num_stages}"
        if not kept:
            self.skipping = True
            self.say(f"{where}: nothing is above threshold {self.args.thresholds[i]}")
            return
        self.rows.set_rows(kept, self.schedule.row_order(improve, len(kept)))
        self.say(f"{where}, Improve {i + 1}/{self.schedule.improves_per_stage}")

    # Its steps

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        if self.skipping:  # without gradients no optimizer moves anything
            model.zero_grad(set_to_none=True)

    def on_step_end(self, args, state, control, *, lr_scheduler, **kwargs):
        self.has_trained = True
        if self.skipping:
            self.skipping = False
            self._jump_to_end(state, control, lr_scheduler)
            return
        size = self.schedule.rows_per_step
        last = (state.global_step - 1) % self.schedule.steps_per_improve
        self.table.cost += 3 * self.rows.tokens(range(last * size, (last + 1) * size))

    def on_evaluate(self, args, state, control, *, metrics, model, lr_scheduler, **kwargs):
        watched = (args.keep_best or args.improve_patience) and "eval_score" in metrics
        if not (self.training and self.table.improves and watched):
            return
        entry, step = self.table.improves[-1], state.global_step
        if entry.evaluated(metrics["eval_score"], step):
            if args.keep_best:
                self._save_best(model, entry, writes=state.is_world_process_zero)
        elif 0 < args.improve_patience <= entry.evaluations_since:
            entry.stopped_at = step
            self._jump_to_end(state, control, lr_scheduler)

    def _save_best(self, model: nn.Module, entry: ImproveEntry, *, writes: bool) -> None:
        weights = trainable_weights(model, kept=writes)
        if writes:
            save_weights(best_path(self.args.output_dir, entry), weights)

    def _jump_to_end(self, state: TrainerState, control: TrainerControl, lr_scheduler: LRScheduler) -> None:
        """Leave the current Improve: the run's step becomes the one at which the next begins.

        So steps divide into Improves as they were planned, and a checkpoint that is written now resumes at the next.
        """
        length = self.schedule.steps_per_improve
        end = -(-state.global_step // length) * length
        for _ in range(end - state.global_step):
            lr_scheduler.step()
        self.pass_over(end - state.global_step)
        state.global_step, state.epoch = end, end / length
        control.should_epoch_stop = True
        if end >= state.max_steps:
            self._save_the_end(control)

    def _save_the_end(self, control: TrainerControl) -> None:
        """As Trainer does behind the last of all steps, so that a run that ends before it is known to have ended."""
        control.should_save |= self.args.save_strategy == SaveStrategy.STEPS

    # It ends

    def on_save(self, args, state, control, **kwargs):
        if args.keep_best and state.is_world_process_zero:
            tables = [
                self.table,
                *saved_tables(args.output_dir),
            ]  # a damaged checkpoint is passed over for an older one
            remove_best(args.output_dir, needed=[entry for table in tables for entry in table.improves[-2:]])

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.is_over(state.global_step):
            control.should_training_stop = True
            self._save_the_end(control)

    def is_over(self, step: int) -> bool:
        """Whether the run ends at this step though its schedule does not: a stage is complete, and the scores are level."""
        stages, rest = divmod(step, self.schedule.steps_per_improve * self.schedule.improves_per_stage)
        return rest == 0 and self._was_level(stages)

    def on_train_end(self, args, state, control, *, model, **kwargs):
        self.training = False
        self.rows.release()
        self.grower.tidy()
        if self.table.improves and not args.load_best_model_at_end:
            self._go_back_to_best(model)

    def _go_back_to_best(self, model: nn.Module) -> None:
        """Give the model the last Improve's best weights, unless it has them or none are kept."""
        entry = self.table.improves[-1]
        last = entry.stopped_at or (entry.improve + 1) * self.schedule.steps_per_improve
        if self.args.keep_best and entry.best_step not in (None, last):
            put_back_best(model, self.args.output_dir, entry, trainer=self.trainer)

    def _was_level(self, stages: int) -> bool:
        """Whether the mean scores had not risen for some of the first stages when those were over."""
        level = self.args.level_stages
        return 0 < level < stages and is_level(
            [mean_score(self.grower.files(stage)) for stage in range(stages)], stages=level
        )
