"""The folder of a run of RAFT or ReST: whose it is, when its run may be gone on with, and from which weights."""

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from trl_ext.self_training.grow import Grower
from trl_ext.self_training.self_training_config import RENAMED
from trl_ext.self_training.stage_table import TABLE
from trl_ext.self_training.weights import save_weights
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.checkpoints import newest_complete_checkpoint
from trl_ext.trainer_kit.run_record import (
    by_new_names,
    check_unchanged,
    model_fingerprint,
    read_record,
    run_record,
    write_record,
)
from trl_ext.trainer_kit.whole_files import PARTIAL

INITIAL = "initial_weights.safetensors"


@dataclass
class RunFolder:
    """What is in `output_dir` beside the Grows and Trainer's checkpoints; it belongs to one run.

        self_training_run.json         what decides the run's samples and weights
        initial_weights.safetensors    the weights that it began with, where it returns to them

    Args:
        grower: Of the run. Its `initial` weights become those that the folder's run began with.
        trainer: Its name, for messages.
    """

    grower: Grower
    trainer: str

    def __post_init__(self):
        self.fingerprint = model_fingerprint(self.grower.policy.model)  # before any step

    @property
    def path(self) -> Path:
        return Path(self.grower.args.output_dir)

    def open(self, resume: str | bool | None, *, has_trained: bool) -> str | bool | None:
        """Begin the run, or go on with the one that is there, from the checkpoint that this returns.

        A ValueError if the folder holds another run, or the model's weights, which have moved, are not those to go on from.
        """
        call = f"{self.trainer}.train(resume_from_checkpoint={resume!r}): output_dir {str(self.path)!r}"
        before, now, accelerator = read_record(self.path), self._record(), self.grower.accelerator
        newest = newest_complete_checkpoint(self.path, (TABLE,))
        others = before is None and (any(self.path.glob("grow-*")) or any(self.path.glob("checkpoint-*")))
        accelerator.wait_for_everyone()  # before one of them writes
        if others:
            raise ValueError(f"{call} holds a run already of another trainer. Give this one a folder of its own.")
        if before is not None and not resume:
            raise ValueError(
                f"{call} holds a run already. Go on with it by resume_from_checkpoint=True, or give this one a folder of "
                "its own."
            )
        if before is not None:
            check_unchanged(by_new_names(before, RENAMED), now, call=call)
        elif accelerator.is_main_process:
            write_record(self.path, now)
        accelerator.wait_for_everyone()
        if has_trained and not (resume and newest):
            raise ValueError(
                f"{call}: the weights of this trainer have moved since the run began, and there is no checkpoint to take "
                "them from. Build the trainer anew; what was sampled and scored is used again."
            )
        self._begin(goes_on=before is not None)
        return None if resume is True and newest is None else resume

    def _begin(self, *, goes_on: bool) -> None:
        """Remove what a kill has left half written; keep the weights that the run begins with, if it returns to them."""
        initial, accelerator = self.grower.initial, self.grower.accelerator
        if accelerator.is_main_process:
            for leftover in self.path.rglob(f"*{PARTIAL}"):
                leftover.unlink()
        accelerator.wait_for_everyone()
        if initial is not None and goes_on and (self.path / INITIAL).is_file():
            self.grower.initial = load_file(self.path / INITIAL)
        elif initial is not None and accelerator.is_main_process:
            save_weights(self.path / INITIAL, initial)
        accelerator.wait_for_everyone()

    def _record(self) -> dict:
        grower = self.grower
        return run_record(
            grower.args,
            grower.dataset,
            tokenizer=tokenizer_fingerprint(grower.policy.tokenizer),
            rewards=grower.scorer.names,
            generator={"name": grower.generator.name} | grower.generator.settings(),
        ) | {
            "model": self.fingerprint,
            "adapter": _adapter_settings(grower.policy.model),
            "rows_per_step": grower.schedule.rows_per_step,  # also changes with the number of processes
        }


def _adapter_settings(model: nn.Module) -> dict:
    """What the adapters of a model were made with, as JSON takes it; nothing for a model without."""
    if not isinstance(model, PeftModel):
        return {}
    return {
        name: {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
        for name, config in model.peft_config.items()
    }
