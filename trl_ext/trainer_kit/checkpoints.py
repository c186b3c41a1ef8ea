"""Checkpoints that are complete or absent, and runs that fail without losing what they had."""

import warnings
from contextlib import nullcontext, suppress
from itertools import takewhile
from os import PathLike
from pathlib import Path

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR

from trl_ext.trainer_kit.checkpoint_files import (
    ADAPTER,
    ADAPTER_CONFIG,
    FSDP,
    MODEL,
    STEPPING,
    TRAINER_STATE,
    Needed,
    checkpoint_folders,
    deepspeed_files,
    is_finished,
    lacks,
    rng_file,
    written_by,
)
from trl_ext.trainer_kit.machines import bits, check_loaded, machines, who_says
from trl_ext.trainer_kit.output_dirs import OutputDirWatch
from trl_ext.trainer_kit.overrides import replaced
from trl_ext.trainer_kit.processes import from_main, has_lost_another, together
from trl_ext.trainer_kit.rates import RATES, own_rates
from trl_ext.trainer_kit.sharding import check_untrained, engine_of
from trl_ext.trainer_kit.streams import check_first_pass
from trl_ext.trainer_kit.trl_versions import saved_by_all
from trl_ext.trainer_kit.watched_runs import WatchedTrainer


def newest_complete_checkpoint(output_dir: str | Path, required: Needed = ()) -> str | None:
    """The `checkpoint-<step>` folder with the highest step in which every file is there and can be opened, or None.

    A run may be killed while it writes; transformers would take the highest number, complete or not.

    Args:
        output_dir: Where the checkpoints are.
        required: Names of further files without which a checkpoint is not complete.
    """
    return next((str(path) for path in checkpoint_folders(output_dir) if not lacks(path, required)), None)


class ResumableTrainer(WatchedTrainer, OutputDirWatch):
    """Mixin before a TRL trainer: resume from the newest complete checkpoint, and keep the log of a run that fails.

    `train(resume_from_checkpoint=True)` passes over checkpoints that are unfinished or damaged, and names them; where
    nothing was finished yet, it begins. A checkpoint that is given by its path must be whole, and written by as many
    processes as there are. When training raises, whatever was logged so far is in `trainer_state.json` of the output
    folder, beside the checkpoints. An error for lack of memory says in which phase, and what would need less.
    """

    def _checkpoint_files(self) -> tuple[str, ...]:
        """Names of the files, besides Trainer's own, without which a checkpoint is not complete."""
        return ()

    def _checkpoint_kind(self) -> str:
        """Whose checkpoints it goes on with, for messages."""
        return type(self).__name__

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        checkpoint = self._open(resume_from_checkpoint)
        try:
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)
        except torch.OutOfMemoryError as error:
            self._keep_log()
            raise torch.OutOfMemoryError(self._out_of_memory(error)) from error
        except BaseException as error:
            self._keep_log()
            if has_lost_another(error):
                raise RuntimeError(self._without_another(error)) from error
            raise

    def evaluation_loop(self, *args, **kwargs):
        self._check_evaluates()
        return super().evaluation_loop(*args, **kwargs)

    def _check_evaluates(self) -> None:
        """What a trainer checks before it evaluates or predicts."""

    def _open(self, resume: str | PathLike | bool | None) -> str | None:
        """Check all that can be checked, then make the output_dir this run's; the checkpoint to go on from."""
        shown = str(resume) if isinstance(resume, PathLike) else resume
        call = f"{type(self).__name__}.train(resume_from_checkpoint={shown!r})"
        if not isinstance(resume, str | PathLike | bool | None):
            raise ValueError(f"{call}: expected True, None or the path of a checkpoint, got {type(resume).__name__}.")
        check_untrained(self, call=call)
        self._check_disk()
        self._check_processes(resume, call)
        saves = self.args.should_save
        self._before = before = from_main(self.accelerator, lambda: self._check_run(resume, call), asks=saves)
        checkpoint = self._checkpoint(resume)
        with together(self.accelerator):
            check_first_pass(self.train_dataset, checkpoint, call=call)
            self._check_beginning(checkpoint, call)
        self._changed = from_main(self.accelerator, lambda: self._begin_run(checkpoint, before, call), asks=saves)
        self._leave_evaluation()
        return checkpoint

    def _check_beginning(self, checkpoint: str | None, call: str) -> None:
        """What a trainer checks besides, in all processes, before anything is written."""

    def _leave_evaluation(self) -> None:
        """A model that was only evaluated counts as prepared, and accelerate would let each process train it by itself."""
        if self.accelerator.num_processes > 1 and self.model_wrapped is self.model and engine_of(self) is None:
            vars(self.model).pop("_is_accelerate_prepared", None)

    # Which checkpoint

    def _checkpoint(self, resume: str | PathLike | bool | None) -> str | None:
        if resume is True:
            return self._newest_checkpoint()
        if resume is None or resume is False:
            return None
        self._check_checkpoint(resume)
        return str(resume)

    def _newest_checkpoint(self) -> str | None:
        """The newest whole checkpoint; None where none was ever finished; a ValueError where all are damaged."""
        problems = self._problems(checkpoint_folders(self.args.output_dir))
        whole = next((folder for folder, found in problems.items() if not found), None)
        passed = [*takewhile(problems.get, problems)]
        said = " ".join(f"{folder.name}: {'; '.join(problems[folder])}." for folder in passed[:3])
        call = f"{type(self).__name__}.train(resume_from_checkpoint=True): {self.args.output_dir!r}"
        any_finished = any(gather_object([any(map(is_finished, passed))]))  # on any machine
        if whole is None and any_finished:
            start = "Start" if self.args.save_only_model else "Give the path of one, or start"
            raise ValueError(
                f"{call} holds no complete checkpoint. {start} anew in another output_dir. "
                f"{said}{self._of_model_only()}"
            )
        if passed and self.accelerator.is_main_process:
            goes_on = "begins anew" if whole is None else f"goes on with {whole.name}"
            warnings.warn(f"{call}, {goes_on} and passes over {said}", stacklevel=3)
        return None if whole is None else str(whole)

    def _check_checkpoint(self, given: str | PathLike) -> None:
        call = f"{type(self).__name__}.train(resume_from_checkpoint={str(given)!r})"
        problems = self._problems([Path(given)])[Path(given)]
        if problems:
            raise ValueError(
                f"{call}: {'; '.join(problems)}, so it is not a checkpoint of {self._checkpoint_kind()} to go on with. To "
                f"start from its weights, load them as the model.{self._of_model_only()}"
            )

    def _of_model_only(self) -> str:
        return " With save_only_model=True, no checkpoint can be gone on with." if self.args.save_only_model else ""

    def _problems(self, folders: list[Path]) -> dict[Path, list[str]]:
        """Why each cannot be gone on with, as any of the processes sees it: they must agree, or wait for ever.

        A folder is one by its name: where each machine has a disk, each may have it elsewhere.
        """
        said = gather_object([{folder.name: self._lacks(folder) for folder in folders}])
        own = {folder.name: folder for folder in folders}
        found = who_says(said, machines(self.accelerator), unknown="there is no such folder")
        return {own.get(name, Path(self.args.output_dir, name)): problems for name, problems in found.items()}

    def _lacks(self, folder: Path) -> list[str]:
        then, now = written_by(folder), self.accelerator.num_processes
        if then not in (None, now):
            return [
                f"it was written by {then} processes, and now their number is {now}: their random states and batches differ"
            ]
        return lacks(folder, (*self._trainer_files(), *self._checkpoint_files()))

    def _trainer_files(self) -> Needed:
        """What Trainer reads of a checkpoint, as this one trains."""
        if self.is_deepspeed_enabled:
            cuts_weights = self.accelerator.state.deepspeed_plugin.zero_stage == 3
            files = deepspeed_files(self._processes(), cuts_weights=cuts_weights)
        elif self.is_fsdp_enabled:
            files = FSDP
        elif isinstance(self.accelerator.unwrap_model(self.model), PeftModel):
            files = (ADAPTER, ADAPTER_CONFIG, *STEPPING)
        else:
            files = (MODEL, *STEPPING)
        scaler = () if self.accelerator.scaler is None else ("scaler.pt",)
        random_states = (rng_file(process, self.accelerator.num_processes) for process in self._processes())
        return (*files, *scaler, *random_states)

    def _processes(self) -> range:
        """The processes whose files are in a checkpoint: all, or where each machine has a disk, surely one's own."""
        if self.args.save_on_each_node:
            return range(self.accelerator.process_index, self.accelerator.process_index + 1)
        return range(self.accelerator.num_processes)

    def _load_optimizer_and_scheduler(self, checkpoint):
        bare = torch.device("cpu")  # nothing can be read to "cpu:0", as each of several processes' is called
        device = bare if self.args.device.type == "cpu" else self.args.device
        changed = self._changed_names & RATES and isinstance(self.lr_scheduler, LambdaLR)
        rates = own_rates(self.optimizer, self.lr_scheduler) if changed else nullcontext()
        with replaced(self.args, _setup_devices=device), rates:
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.args.save_on_each_node and engine_of(self) is None:
            call = f"{type(self).__name__}.train(resume_from_checkpoint={str(checkpoint)!r})"
            check_loaded(self._state_bits(), self.accelerator, call=call)
        if self.state.global_step < self.state.max_steps:
            self._write_record()

    def _state_bits(self) -> dict[str, int]:
        """A number for each part of what is trained, which other bits would change."""
        groups = self.optimizer.param_groups
        weights = [parameter for group in groups for parameter in group["params"]]
        moments = [x for state in self.optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
        return {"weights": sum(map(bits, weights)), "the optimizer's state": sum(map(bits, moments))}

    def _load_callback_state(self):
        super()._load_callback_state()
        best = Path(self.args.output_dir, f"checkpoint-{self.state.best_global_step}")
        if best.is_dir():  # the state names it where it was before the run's folder was moved or copied
            self.state.best_model_checkpoint = str(best)

    # Writing one

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        folder.mkdir(parents=True, exist_ok=True)  # for processes that write before the first has saved the model
        if self.args.should_save:  # an older one by this name, which was passed over, must not lend its mark to this
            for path in (folder / TRAINER_STATE, *folder.glob("rng_state*.pth")):
                path.unlink(missing_ok=True)
            self._write_record(folder)
            if self._trackers is not None:
                self._trackers.keep(folder)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir=None, state_dict=None):
        with saved_by_all(self.model) if self.args.save_on_each_node else nullcontext():
            super()._save(output_dir, state_dict)

    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # only then the mark that all is written, and older ones may go

    # A run that fails

    def _keep_log(self) -> None:
        if self.state.log_history:  # else an earlier run's log would be lost
            with suppress(OSError):  # a full disk must not hide what failed first
                self.save_state()

    def _out_of_memory(self, error: torch.OutOfMemoryError) -> str:
        return f"{type(self).__name__}.train: {self.memory.explain()} {self._kept()} ({error})"

    def _without_another(self, error: BaseException) -> str:
        me, all_of_them, state = self.accelerator.process_index, self.accelerator.num_processes, self.state
        return (
            f"{type(self).__name__}.train: process {me} of {all_of_them} no longer hears another one, after step "
            f"{state.global_step} of {state.max_steps}. That one has ended, or stood still for longer than the time-out "
            f"(ddp_timeout; on a CPU half an hour): what it said last is the reason. {self._kept()} Start all of them again with "
            f"resume_from_checkpoint=True. ({error})"
        )

    def _kept(self) -> str:
        needed = (*self._trainer_files(), *self._checkpoint_files())
        newest = newest_complete_checkpoint(self.args.output_dir, needed)
        kept = "no checkpoint was written yet" if newest is None else f"checkpoints are kept, the newest is {newest!r}"
        return f"In {self.args.output_dir!r}, {kept}."
