"""Checkpoints that are complete or absent, and runs that fail without losing what they had."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch

from trl_ext.trainer_kit.overrides import replaced

TRAINER_STATE = "trainer_state.json"  # written last by transformers' Trainer


def newest_complete_checkpoint(output_dir: str | Path, required: tuple[str, ...] = ()) -> str | None:
    """The `checkpoint-<step>` folder with the highest step in which every file is there, or None.

    A run may be killed while it writes; transformers would take the highest number, complete or not.

    Args:
        output_dir: Where the checkpoints are.
        required: Names of further files without which a checkpoint is not complete.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    by_step = sorted(folders, key=lambda path: int(path.name.split("-")[1]), reverse=True)
    return next((str(path) for path in by_step if _is_complete(path, required)), None)


def _is_complete(folder: Path, required: tuple[str, ...]) -> bool:
    if not all((folder / name).is_file() for name in required):
        return False
    try:
        json.loads((folder / TRAINER_STATE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


class Explains(Protocol):
    """What a trainer asks of its `MemoryWatch` when memory has run out."""

    def explain(self) -> str: ...


class ResumableTrainer:
    """Mixin before a Trainer: resume from the newest complete checkpoint, and keep the log of a run that fails.

    `train(resume_from_checkpoint=True)` passes over checkpoints that a killed run left unfinished. When training
    raises, whatever was logged so far is in `trainer_state.json` of the output folder, beside the checkpoints. An error
    for lack of memory says in which phase, and what would need less.
    """

    memory: Explains

    def _checkpoint_files(self) -> tuple[str, ...]:
        """Names of the files, besides Trainer's own, without which a checkpoint is not complete."""
        return ()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_complete_checkpoint(self.args.output_dir, self._checkpoint_files())
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"{type(self).__name__}.train(resume_from_checkpoint=True): {self.args.output_dir!r} holds no "
                    "complete checkpoint. Give the path of one, or start with resume_from_checkpoint=None."
                )
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except torch.OutOfMemoryError as error:
            self._keep_log()
            raise torch.OutOfMemoryError(self._out_of_memory(error)) from error
        except BaseException:
            self._keep_log()
            raise

    def _load_optimizer_and_scheduler(self, checkpoint):
        bare = torch.device("cpu")  # nothing can be read to "cpu:0", as each of several processes' is called
        device = bare if self.args.device.type == "cpu" else self.args.device
        with replaced(self.args, _setup_devices=device):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        folder.mkdir(parents=True, exist_ok=True)  # for processes that write before the first has saved the model
        if self.args.should_save:  # an older one by this name, which was passed over, must not lend its mark to this
            for path in (folder / TRAINER_STATE, *folder.glob("rng_state*.pth")):
                path.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # only then the mark that all is written, and older ones may go

    def _keep_log(self) -> None:
        if self.state.log_history:  # else an earlier run's log would be lost
            with suppress(OSError):  # a full disk must not hide what failed first
                self.save_state()

    def _out_of_memory(self, error: torch.OutOfMemoryError) -> str:
        newest = newest_complete_checkpoint(self.args.output_dir, self._checkpoint_files())
        kept = "no checkpoint was written yet" if newest is None else f"checkpoints are kept, the newest is {newest!r}"
        return f"{type(self).__name__}.train: {self.memory.explain()} In {self.args.output_dir!r}, {kept}. ({error})"
