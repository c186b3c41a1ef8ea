"""What wandb, trackio and TensorBoard are told beside what is logged: findings; and which run of theirs is gone on with.

Metrics have one name in all three, since transformers sends them: `train/…` and `eval/…`.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from trl_ext.trainer_kit.curve_ends import LEAST
from trl_ext.trainer_kit.findings import Finding, findings
from trl_ext.trainer_kit.logged_run import logged_run
from trl_ext.trainer_kit.run_log import LOG, lines
from trl_ext.trainer_kit.whole_files import remove_leftovers, written_whole

KINDS = (WandbCallback, TrackioCallback, TensorBoardCallback)
IN_CHECKPOINT = "trl_ext_trackers.json"
OFTEN = 1.1  # a run is looked at when it has so many times more logs than at the last look


class Trackers(TrainerCallback):
    """Stands before the trackers' own callbacks: a resumed run goes on in the runs of theirs that its log names, or, where it
    goes on in another folder, its checkpoint; and each finding is sent when it first shows, and all of them at the end, as text under `findings/<name>`.

    Args:
        trainer: Whose callbacks are looked through, each time: a user may add one.
        checkpoint: That is gone on from.
    """

    def __init__(self, trainer: Trainer, checkpoint: str | None = None):
        self.trainer, self.checkpoint = trainer, checkpoint
        self.folder = Path(trainer.args.output_dir)
        self.seen: set[str] = set()
        self.logs = self.next_look = 0

    def in_use(self) -> list[TrainerCallback]:
        """The trackers' callbacks."""
        return [callback for callback in self.trainer.callback_handler.callbacks if isinstance(callback, KINDS)]

    def runs(self) -> dict[str, str]:
        """What they call the runs that they are at: wandb's id, trackio's name."""
        found = {}
        for callback in self.in_use():
            if isinstance(callback, WandbCallback) and callback._wandb.run is not None:
                found["wandb"] = callback._wandb.run.id
            elif isinstance(callback, TrackioCallback) and (run := callback._trackio.context_vars.current_run.get()):
                found["trackio"] = run.name
        return found

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen, self.logs, self.next_look = set(), 0, LEAST
        if state.global_step and state.is_world_process_zero:
            self._go_on(former_runs(self.folder / LOG) or kept_runs(self.checkpoint))

    def keep(self, checkpoint: Path) -> None:
        """Leave in a checkpoint which runs of theirs it belongs to."""
        if runs := self.runs():
            remove_leftovers(checkpoint, re.compile(re.escape(IN_CHECKPOINT)))
            with written_whole(checkpoint / IN_CHECKPOINT) as partial:
                partial.write_text(json.dumps(runs), encoding="utf-8")

    def _go_on(self, runs: dict[str, Any]) -> None:
        named = self.trainer.args.run_name
        for callback in self.in_use():
            if isinstance(callback, WandbCallback) and callback._wandb.run is None and runs.get("wandb"):
                open_wandb(callback._wandb, runs["wandb"], named)
            elif isinstance(callback, TrackioCallback) and named is None and runs.get("trackio"):
                self.trainer.args.run_name = runs["trackio"]  # transformers' trackio resumes a run of that name

    def on_log(self, args, state, control, **kwargs):
        self.logs += 1
        if self.logs >= self.next_look and state.is_world_process_zero and self.in_use():
            self.next_look = OFTEN * self.logs
            self._send(state.global_step, only_new=True)

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.in_use():
            self._send(state.global_step, only_new=False)

    def _send(self, step: int, *, only_new: bool) -> None:
        run = logged_run(self.folder)
        found = [] if run is None else [one for one in findings(run) if not (only_new and one.name in self.seen)]
        self.seen |= {finding.name for finding in found}
        for callback in self.in_use() if found else ():
            send(callback, dict(map(said, found)), step)


def said(finding: Finding) -> tuple[str, str]:
    """Its name among metrics, and its text."""
    return f"findings/{finding.name.replace(' ', '_')}", f"{finding.sign}. {finding.turn}"


def send(callback: TrainerCallback, texts: dict[str, str], step: int) -> None:
    """Texts by name, to one tracker that has begun."""
    if isinstance(callback, TensorBoardCallback):
        for name, text in texts.items() if callback.tb_writer is not None else ():
            callback.tb_writer.add_text(name, text, step)
    elif isinstance(callback, WandbCallback) and callback._initialized:
        callback._wandb.log({**texts, "train/global_step": step})
    elif isinstance(callback, TrackioCallback) and callback._initialized:
        callback._trackio.log({**texts, "train/global_step": step})


def open_wandb(wandb: Any, run: str, name: str | None) -> None:
    """Go on with a run, unless the user has named one; transformers then takes the run that is open."""
    if "WANDB_RUN_ID" not in os.environ:
        named = {} if name is None else {"name": name}
        wandb.init(project=os.getenv("WANDB_PROJECT", "huggingface"), id=run, resume="allow", **named)


def former_runs(path: Path) -> dict[str, Any]:
    """The trackers' runs that a log was last begun with."""
    begun: Iterator = (line.get("trackers") for line in lines(path) if line["kind"] == "begin")
    found = [runs for runs in begun if isinstance(runs, dict) and runs]
    return found[-1] if found else {}


def kept_runs(checkpoint: str | None) -> dict[str, Any]:
    """What `keep` has left; nothing where it did not, or what is there is damaged."""
    try:
        runs = json.loads(Path(checkpoint or "", IN_CHECKPOINT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return runs if isinstance(runs, dict) else {}
