"""The folder of a run of RAFT or ReST: whose it is, when its run may be gone on with, and from which weights."""

import re
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from trl_ext.generation.sample_files import PART_NAME
from trl_ext.self_training.grow import Grower
from trl_ext.self_training.grow_files import GROW_NAME, GrowFiles
from trl_ext.self_training.self_training_config import RENAMED
from trl_ext.self_training.stage_table import TABLE
from trl_ext.self_training.weights import BEST_NAME, save_weights
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.checkpoints import newest_complete_checkpoint
from trl_ext.trainer_kit.run_record import (
    RECORD,
    by_new_names,
    check_unchanged,
    model_fingerprint,
    read_record,
    run_record,
    write_record,
)
from trl_ext.trainer_kit.whole_files import remove_leftovers

INITIAL = "initial_weights.safetensors"
RECORD_NAME = re.compile(re.escape(RECORD))
OWN_NAMES = re.compile(rf"{re.escape(INITIAL)}|{BEST_NAME.pattern}|{GROW_NAME.pattern}\.parquet")
TAKEN_NAMES = re.compile(rf"{OWN_NAMES.pattern}|{GROW_NAME.pattern}|checkpoint-\d+")  # no new run writes over these


@dataclass
class RunFolder:
    """What is in `output_dir` beside the Grows and Trainer's checkpoints; it belongs to one run.

        self_training_run.json         what decides the run's samples and weights
        initial_weights.safetensors    the weights that it began with, where it returns to them

    The record is the run's mark: without it, nothing there is its own; with it, what has the exact name of its files is.

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

    def open(self, resume: str | bool | None, *, has_trained: bool) -> None:
        """Begin the run, or go on with the one that is there.

        A ValueError if the folder holds another run, or the model's weights, which have moved, are not those to go on from.
        """
        call = f"{self.trainer}.train(resume_from_checkpoint={resume!r}): output_dir {str(self.path)!r}"
        now, accelerator = self._record(), self.grower.accelerator
        if accelerator.is_main_process:
            remove_leftovers(self.path, RECORD_NAME)
        accelerator.wait_for_everyone()
        before, taken = read_record(self.path), taken_names(self.path)
        newest = newest_complete_checkpoint(self.path, (TABLE,))
        accelerator.wait_for_everyone()  # before one of them writes
        if before is None and taken:
            raise ValueError(
                f"{call}, with {taken[0]!r}, holds a run already of another trainer. Give this one a folder of its own."
            )
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

    def _begin(self, *, goes_on: bool) -> None:
        """Remove what a kill has left half written; keep the weights that the run begins with, if it returns to them."""
        initial, accelerator = self.grower.initial, self.grower.accelerator
        if accelerator.is_main_process:
            remove_leftovers(self.path, OWN_NAMES)
            for files in grows(self.path):
                remove_leftovers(files.parts, PART_NAME)
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


def taken_names(folder: Path) -> list[str]:
    """Of a folder's content, what a run would take for its own."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(name for name in names if TAKEN_NAMES.fullmatch(name))


def grows(folder: Path) -> list[GrowFiles]:
    """The Grows of which a run's folder holds anything."""
    stems = {name.removesuffix(".parquet") for name in taken_names(folder)}
    return [GrowFiles(folder, int(stem.split("-")[1])) for stem in sorted(stems) if GROW_NAME.fullmatch(stem)]


def forget_run(folder: Path) -> None:
    """Remove a run's own files, by their exact names, so that another may begin; not its checkpoints and its models."""
    if read_record(folder) is None:
        return
    for files in grows(folder):
        files.remove_parts()
        files.finished.unlink(missing_ok=True)
    remove_leftovers(folder, OWN_NAMES)
    for path in list(folder.iterdir()):
        if OWN_NAMES.fullmatch(path.name) and path.is_file():
            path.unlink()
    (folder / RECORD).unlink()  # last: until then it says whose they are


def _adapter_settings(model: nn.Module) -> dict:
    """What the adapters of a model were made with, as JSON takes it; nothing for a model without."""
    if not isinstance(model, PeftModel):
        return {}
    return {
        name: {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
        for name, config in model.peft_config.items()
    }
