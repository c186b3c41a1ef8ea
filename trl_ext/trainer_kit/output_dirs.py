"""What a trainer looks after in its output_dir: whose run it is, that checkpoints have room, that a README is its own."""

import warnings
from collections.abc import Iterator, Set
from dataclasses import fields
from os import PathLike
from pathlib import Path

from torch import nn

from trl_ext.trainer_kit.checkpoint_files import checkpoint_folders, has_all_steps
from trl_ext.trainer_kit.fingerprints import adapter_settings, model_fingerprint, reference_fingerprint
from trl_ext.trainer_kit.free_disk import check_free_disk, checkpoint_bytes
from trl_ext.trainer_kit.machines import check_alike, check_folder
from trl_ext.trainer_kit.model_cards import ModelCards
from trl_ext.trainer_kit.processes import together
from trl_ext.trainer_kit.rates import RATES, is_stepwise
from trl_ext.trainer_kit.run_changes import (
    FIXED,
    LONGER,
    Change,
    changes,
    check_accepted,
    check_allowed,
    warn_of_changes,
)
from trl_ext.trainer_kit.run_record import (
    RECORD_NAME,
    Record,
    as_json,
    config_record,
    optimizer_record,
    read_record,
    write_record,
)
from trl_ext.trainer_kit.sharding import engine_of
from trl_ext.trainer_kit.whole_files import remove_leftovers

ALONE = "Give this one a folder of its own."


class OutputDirWatch(ModelCards):
    """Mixin before a TRL trainer, whose output_dir belongs to one run: a record in it says how that was begun.

        trl_ext_run.json     in the folder, and as it was then in each checkpoint

    A run is only gone on with as it was begun, apart from what is in `HARMLESS`, is longer, or is in the config's
    `accept_changes`. The process that saves reads, compares and writes: the first of all, or with `save_on_each_node`
    that of each machine. All of them begin alike. What a trainer says of its own:

        _recorded, _note_beginning    what decides its run, besides its config
        _fixed, _harmless             which of it cannot change within a run, and which may at any time
        _run_files                    what in the folder is a run's
        _reads_together               what of that all processes read, so that they need one folder
        _older                        an older record, as one of today
    """

    _accept_by = "accept_changes"
    _harmless: Set[str] = frozenset()
    _needs_record = False  # whether a run without one is another trainer's, rather than an older version's
    _reads_together: str | None = None  # what in the folder all processes read, besides checkpoints
    _beginning: Record = {}  # noqa: RUF012 - replaced, not changed
    _run: Record | None = None  # of this run
    _before: Record | None = None  # of the run that is gone on with
    _changed: tuple[Change, ...] = ()  # since the checkpoint that it goes on from

    # What a trainer says of its run

    def _recorded(self) -> Record:
        return {}

    def _fixed(self) -> dict[str, str]:
        if is_stepwise(self.lr_scheduler, self.args) and not self.is_deepspeed_enabled:
            return FIXED
        return FIXED | dict.fromkeys(RATES - {*LONGER, "max_grad_norm"}, "the schedule's state is the checkpoint's")

    def _evaluation_decides(self) -> bool:
        """Whether what is learned depends on how it is evaluated."""
        return self.args.lr_scheduler_type == "reduce_lr_on_plateau"

    def _run_files(self, folder: Path, *, recorded: bool) -> list[str]:
        return [path.name for path in checkpoint_folders(folder)]

    def _older(self, record: Record) -> Record:
        return record

    def _note_beginning(self, **models: nn.Module | None) -> None:
        """Keep what will have moved when the run is recorded: the model's fingerprint, and those of `models`."""
        reference = reference_fingerprint(self.model)
        self._beginning = {
            "model": model_fingerprint(self.model),
            "adapter": as_json(adapter_settings(self.model)),
            "optimizer": optimizer_record(self.optimizer, self.optimizer_cls_and_kwargs),
            **({} if reference is None else {"reference": reference}),  # which comes and goes with PPO's `beta`
            **{name: None if model is None else model_fingerprint(model) for name, model in models.items()},
        }

    def _run_record(self) -> Record:
        options = config_record(self.args, harmless=self._harmless, evaluates=self._evaluation_decides())
        spread = {"processes": self.accelerator.num_processes, "engine": engine_of(self)}
        return (
            {"trainer": type(self).__name__, "config": options} | spread | self._beginning | as_json(self._recorded())
        )

    @property
    def _accepted(self) -> list[str]:
        """Of its config; a plain one of TRL's has no such option."""
        return getattr(self.args, "accept_changes", None) or []

    @property
    def _changed_names(self) -> set[str]:
        return {change.name for change in self._changed}

    # Before a run

    def _check_processes(self, resume: str | PathLike | bool | None, call: str) -> None:
        """Raise a ValueError, in all of several processes, unless they begin alike and see the files that they will need."""
        with together(self.accelerator):
            self._run = self._run_record()
        if self.accelerator.num_processes == 1:
            return
        cut = set() if engine_of(self) is None else self._beginning.keys()  # each process may have its own piece
        alike = {name: value for name, value in self._run.items() if name not in cut}
        shown = Path(resume).name if isinstance(resume, str | PathLike) else resume or None
        check_alike(alike | {"resume_from_checkpoint": shown}, self.accelerator, call=call)
        for on_each, instead in self._folders_needed():
            where, folder = f"{call}, output_dir", Path(self.args.output_dir)
            check_folder(folder, self.accelerator, on_each=on_each, call=where, instead=instead)

    def _folders_needed(self) -> Iterator[tuple[bool, str]]:
        """Whether one folder of each machine or of all is needed, and what to do where it is not there."""
        args, engine = self.args, engine_of(self)
        one_disk = "Give all processes one folder, on a disk that all machines share"
        saves = args.save_strategy != "no" and (not args.save_only_model or args.load_best_model_at_end)
        if self._reads_together:
            yield False, f"{self._reads_together}. {one_disk}."
        if engine is not None and (saves or args.save_on_each_node):
            yield False, f"Under {engine} all processes write each checkpoint together. {one_disk}."
        elif saves and not args.save_on_each_node:
            own = "where each machine has a disk of its own, give save_on_each_node=True"
            yield False, f"No run could go on from its checkpoints. {one_disk}; or, {own}."
        if args.save_on_each_node:
            yield True, f"{one_disk}, and leave save_on_each_node out."

    def _check_disk(self) -> None:
        with together(self.accelerator):
            if self.args.should_save and self.args.save_strategy != "no":
                call = f"{type(self).__name__}.train, output_dir {str(self.args.output_dir)!r}"
                check_free_disk(Path(self.args.output_dir), checkpoint_bytes(self.model, self.args), call=call)

    def _check_run(self, resume: str | PathLike | bool | None, call: str) -> Record | None:
        """The record of the run that is there, if one is gone on with; a ValueError if it may not be."""
        folder, name = Path(self.args.output_dir), type(self).__name__
        remove_leftovers(folder, RECORD_NAME)
        check_accepted(self._accepted, [f.name for f in fields(self.args)], self._run, call=call)
        before = self._record_in(folder)
        held = self._run_files(folder, recorded=before is not None)
        call = f"{call}: output_dir {str(folder)!r}"
        if before is not None and before.get("trainer") != name:
            raise ValueError(f"{call} holds a run of {before.get('trainer', 'another trainer')}. {ALONE}")
        if held and before is None and self._needs_record:
            raise ValueError(f"{call}, with {held[0]!r}, holds a run already of another trainer. {ALONE}")
        if held and resume in (None, False):
            shown = f", with {held[0]!r}," if before is None else ""
            raise ValueError(
                f"{call}{shown} holds a run already. Go on with it by resume_from_checkpoint=True, or give this one a "
                "folder of its own."
            )
        is_path = isinstance(resume, str | PathLike)
        elsewhere = is_path and (before is None or Path(resume).absolute().parent != folder.absolute())
        given = self._record_of(Path(resume)) if elsewhere else None
        for record in (before if held else None, given):
            if record is not None:
                check_allowed(self._changes(record), self._accepted, self._fixed(), call=call, by=self._accept_by)
        return before if held else given

    def _begin_run(self, checkpoint: str | None, before: Record | None, call: str) -> tuple[Change, ...]:
        """What has changed since the checkpoint was written, or since the run was begun; the record is then today's.

        It is written before anything else is; where a checkpoint is gone on from, once that was loaded.
        """
        then = before if checkpoint is None else self._record_of(Path(checkpoint)) or before
        found = [] if then is None else self._changes(then)
        if checkpoint is not None and has_all_steps(checkpoint) and not any(change.is_longer for change in found):
            return tuple(found)  # no step will be made, so that the record stays
        if checkpoint is not None and then is None:
            warnings.warn(
                f"{call}: {checkpoint!r} has no record of how its run was begun, as an older version's, so it is not known "
                "whether options and data are the same.",
                stacklevel=2,
            )
        warn_of_changes(found, self._accepted, call=call)
        if checkpoint is None or self._needs_record:
            self._write_record()
        return tuple(found)

    def _write_record(self, folder: Path | None = None) -> None:
        if self._run is not None and self.args.should_save:
            write_record(folder or Path(self.args.output_dir), self._run)

    def _changes(self, before: Record) -> list[Change]:
        return changes(before, self._run, self.args)

    def _record_in(self, folder: Path) -> Record | None:
        """The record of a run's folder; of one without, that of its newest checkpoint which has one."""
        records = (read_record(path) for path in (folder, *checkpoint_folders(folder)))
        return next((self._older(record) for record in records if record is not None), None)

    def _record_of(self, checkpoint: Path) -> Record | None:
        """The record in a checkpoint; of one without, that of the folder which it is in."""
        records = (read_record(path) for path in (checkpoint, checkpoint.absolute().parent))
        return next((self._older(record) for record in records if record is not None), None)
