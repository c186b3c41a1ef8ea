"""What a run of RAFT or ReST keeps beside Trainer's checkpoints, and when it may be gone on with."""

from pathlib import Path

from peft import PeftModel

from trl_ext.self_training.self_training_config import RENAMED
from trl_ext.self_training.stage_table import TABLE, StageTable
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.checkpoints import ResumableTrainer, newest_complete_checkpoint
from trl_ext.trainer_kit.run_record import by_new_names, check_unchanged, read_record, run_record, write_record


class SelfTrainingCheckpoints(ResumableTrainer):
    """Mixin before SFTTrainer: a run's folder belongs to one run, and its checkpoints also hold the stage table."""

    has_trained = False  # whether this object has made a step

    def _checkpoint_files(self):
        return (TABLE,)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """A whole run: all stages.

        Args:
            resume_from_checkpoint: True goes on with whatever of this run is in `output_dir`: from its newest complete
                checkpoint if there is one, and with all that was sampled and scored; where there is nothing yet, it
                begins. So a script that may be killed can always pass True. Or the path of one of its checkpoints.

        Raises:
            ValueError: If the folder holds another run.
        """
        self.table = StageTable()
        self.goes_on = False  # with a run that is in the folder
        return super().train(resume_from_checkpoint=self._open_folder(resume_from_checkpoint), **kwargs)

    def _open_folder(self, resume: str | bool | None) -> str | bool | None:
        folder = Path(self.args.output_dir)
        call = f"{type(self).__name__}.train(resume_from_checkpoint={resume!r}): output_dir {str(folder)!r}"
        before, now = read_record(folder), self._record()
        newest = newest_complete_checkpoint(folder, self._checkpoint_files())
        others = before is None and (any(folder.glob("grow-*")) or any(folder.glob("checkpoint-*")))
        self.accelerator.wait_for_everyone()  # before one of them writes
        if others or (before is not None and not resume):
            raise ValueError(
                f"{call} holds a run already{' of another trainer' if others else ''}. "
                f"{'' if others else 'Go on with it by resume_from_checkpoint=True, or '}"
                f"{'G' if others else 'g'}ive this one a folder of its own."
            )
        self.goes_on = before is not None
        if self.goes_on:
            check_unchanged(by_new_names(before, RENAMED), now, call=call)
        elif self.accelerator.is_main_process:
            write_record(folder, now)
        self.accelerator.wait_for_everyone()
        if self.has_trained and not (resume and newest):
            raise ValueError(
                f"{call}: the weights of this trainer have moved since the run began, and there is no checkpoint to take "
                "them from. Build the trainer anew; what was sampled and scored is used again."
            )
        return None if resume is True and newest is None else resume

    def _record(self) -> dict:
        return run_record(
            self.args,
            self.grower.dataset,
            tokenizer=tokenizer_fingerprint(self.processing_class),
            rewards=self.grower.scorer.names,
            generator={"name": self.grower.generator.name} | self.grower.generator.settings(),
        ) | {
            "model": self.fingerprint,
            "adapter": _adapter_settings(self.model),
            "rows_per_step": self.schedule.rows_per_step,  # also changes with the number of processes
        }

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.accelerator.is_main_process:
            self.table.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is not None:
            self.table = StageTable.load(checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)


def _adapter_settings(model) -> dict:
    """What the adapters of a model were made with, as JSON takes it; nothing for a model without."""
    if not isinstance(model, PeftModel):
        return {}
    return {
        name: {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
        for name, config in model.peft_config.items()
    }
