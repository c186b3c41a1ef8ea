"""The folder of a run of RAFT or ReST: which files in it are the run's, and from which weights it goes on."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from trl_ext.generation.sample_files import PART_NAME
from trl_ext.self_training.grow import Grower
from trl_ext.self_training.grow_files import GROW_NAME, GrowFiles
from trl_ext.self_training.stage_prompts import PROMPTS_NAME
from trl_ext.self_training.stage_table import TABLE
from trl_ext.self_training.weights import BEST_NAME, save_weights
from trl_ext.trainer_kit.checkpoint_files import PUSHED
from trl_ext.trainer_kit.machines import seen
from trl_ext.trainer_kit.run_log import LOG
from trl_ext.trainer_kit.run_record import RECORD_NAME, read_record
from trl_ext.trainer_kit.whole_files import link_or_copy, remove_leftovers

INITIAL = "initial_weights.safetensors"
OWN_NAMES = re.compile(
    rf"{re.escape(INITIAL)}|{BEST_NAME.pattern}|{GROW_NAME.pattern}\.parquet|{PROMPTS_NAME.pattern}"
)
FORGOTTEN = re.compile(rf"{OWN_NAMES.pattern}|{re.escape(LOG)}")
TAKEN_NAMES = re.compile(rf"{OWN_NAMES.pattern}|{GROW_NAME.pattern}|checkpoint-\d+|{PUSHED}")  # of no new run


@dataclass
class RunFolder:
    """What is in `output_dir` beside the record and Trainer's checkpoints.

        grow-000.parquet, …            the Grows, and while one runs its parts
        prompts-000.parquet, …         of a stream, what each stage asks
        initial_weights.safetensors    the weights that it began with, where it returns to them
        best-improve-….safetensors     those of an Improve's best held-out score

    The record is the run's mark: without it, nothing there is its own; with it, what has the exact name of its files is.

    Args:
        grower: Of the run. Its `initial` weights become those that the folder's run began with.
    """

    grower: Grower

    @property
    def path(self) -> Path:
        return Path(self.grower.args.output_dir)

    def check(self, checkpoint: str | None, *, has_trained: bool, call: str) -> None:
        """Raise a ValueError if the model's weights, which have moved, are not those to go on from, or samples are gone."""
        if has_trained and checkpoint is None:
            raise ValueError(
                f"{call}: the weights of this trainer have moved since the run began, and there is no checkpoint to take "
                "them from. Build the trainer anew; what was sampled and scored is used again."
            )
        improves = json.loads(Path(checkpoint, TABLE).read_text(encoding="utf-8"))["improves"] if checkpoint else []
        places = [self.path, *_sources(checkpoint)] if checkpoint else []
        if improves and not any(GrowFiles(path, improves[-1]["stage"]).finished.exists() for path in places):
            name = GrowFiles(self.path, improves[-1]["stage"]).finished.name
            raise ValueError(
                f"{call}: {name!r}, from which the run was learning, is neither in {str(self.path)!r} nor where the "
                "checkpoint is. Copy the Grows of the run there, too."
            )

    def begin(self, checkpoint: str | None, *, goes_on: bool, anew: bool) -> None:
        """Remove what a kill has left half written; take what lies with the checkpoint; keep the weights of the beginning.

        Args:
            checkpoint: To go on from.
            goes_on: Whether the run was begun before.
            anew: In the main process: whether a Grow that is not finished begins anew, its samples being made otherwise now.
        """
        initial, accelerator = self.grower.initial, self.grower.accelerator
        if accelerator.is_main_process:
            remove_leftovers(self.path, OWN_NAMES)
            for source in _sources(checkpoint) if checkpoint else []:
                _put(source, self.path)
            for files in grows(self.path):
                remove_leftovers(files.parts, PART_NAME)
                if anew and not files.finished.exists():
                    files.remove_parts()
        accelerator.wait_for_everyone()
        if initial is not None and goes_on and (self.path / INITIAL).is_file():
            self.grower.initial = load_file(self.path / INITIAL)
        elif initial is not None and accelerator.is_main_process:
            save_weights(self.path / INITIAL, initial)
        accelerator.wait_for_everyone()
        if initial is not None and accelerator.num_processes > 1:  # an adapter's may be each process's own until here
            self.grower.initial = load_file(seen(self.path / INITIAL))

    def complete(self, checkpoint: Path) -> None:
        """Put what going on from a checkpoint needs into it, for where it is taken without the folder."""
        _put(self.path, checkpoint)


def _sources(checkpoint: str) -> tuple[Path, Path]:
    """Where a checkpoint's run has its files: with it, if it was pushed, or in the folder that it is in."""
    return Path(checkpoint), Path(checkpoint).absolute().parent


def _put(source: Path, folder: Path) -> None:
    for path in sorted(source.iterdir()):
        if OWN_NAMES.fullmatch(path.name) and path.is_file() and not (folder / path.name).exists():
            link_or_copy(path, folder / path.name)


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
    remove_leftovers(folder, FORGOTTEN)
    for path in list(folder.iterdir()):
        if FORGOTTEN.fullmatch(path.name) and path.is_file():
            path.unlink()
    for path in list(folder.iterdir()):  # last: until then it says whose they are
        if RECORD_NAME.fullmatch(path.name):
            path.unlink()
