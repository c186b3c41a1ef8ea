"""What looks on while a trainer trains: signals, the log for a report, the time left, a notebook's table."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from trl_ext.trainer_kit.launch_checks import check_before, check_launch
from trl_ext.trainer_kit.loading import loaded_bits
from trl_ext.trainer_kit.run_log import RunLog
from trl_ext.trainer_kit.stopping import RunStopped, StopWatch
from trl_ext.trainer_kit.time_left import TimeLeft
from trl_ext.trainer_kit.trackers import Trackers
from trl_ext.trainer_kit.trl_versions import tokens_read


class Memory(Protocol):
    """What a trainer asks of its `MemoryWatch`."""

    def explain(self) -> str: ...


class WatchedTrainer:
    """Mixin before a TRL trainer: Ctrl-C or SIGTERM, once, end its run after the step it is at with a checkpoint and a
    `RunStopped`; twice, at once. What is logged, and samples at a few steps, are left in the run's folder. In a notebook it
    shows what matters of its method. What a trainer says of its own:

        _shown            names of what it logs and matters
        _steps_to_know    after how many steps its speed is known
        _last_samples     its last samples, each with its rewards

    A run that has made all its steps makes no further one when it is given again, and says so.
    """

    memory: Memory
    _shown: tuple[str, ...] = ()
    _stop: StopWatch | None = None  # while it trains
    was_finished = False  # whether what `train` was to go on with had ended already
    _trackers: Trackers | None = None

    def create_accelerator_and_postprocess(self):
        check_before(self.args)
        super().create_accelerator_and_postprocess()
        check_launch(self)

    def train(self, *args, **kwargs):
        if "transformers.utils.notebook" in sys.modules:  # else nobody has its bar; it needs IPython
            from trl_ext.trainer_kit.notebook_metrics import show_in_notebook

            show_in_notebook(self, self._shown)
        checkpoint = kwargs.get("resume_from_checkpoint")
        with self._watched(checkpoint) as stop:
            stop.kept_at = self._step_of(checkpoint)
            output = super().train(*args, **kwargs)
            stop.hear_what_came_late(self.state.global_step)
        if stop.stopped_at is not None:
            raise RunStopped(self._stopped(stop.stopped_at))
        self.was_finished = not stop.steps
        if self.was_finished and self.accelerator.is_main_process:
            warnings.warn(self._ended_before(), stacklevel=2)
        return output

    def _run_epoch(self, *args, **kwargs):  # transformers looks whether the end is reached behind each step alone
        if self._is_over():
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    @contextmanager
    def _watched(self, checkpoint: str | None) -> Iterator[StopWatch]:
        """Inside, callbacks look on, and signals are taken."""
        self._stop, self._trackers = stop, trackers = StopWatch(self.accelerator), Trackers(self, checkpoint)
        log = RunLog(self.args.output_dir, self._begun, self._last_samples, self._ended_with, self._is_over)
        watching = (log, self._time_left(), stop, trackers)
        for callback in watching[:-1]:
            self.add_callback(callback)
        self.callback_handler.callbacks.insert(0, trackers)  # before those of the trackers
        try:
            with stop.listening():
                yield stop
        except RunStopped:
            log.close(self.state)
            raise
        except BaseException as error:
            log.close(self.state, error)
            raise
        finally:
            for callback in watching:
                self.remove_callback(callback)
            self._stop = None

    def _is_over(self) -> bool:
        """Whether no step is left; also asked as a run begins, since one that is finished may be given again."""
        return self.state.global_step >= self.state.max_steps

    def _steps_to_know(self) -> int:
        return 10

    def _last_samples(self) -> list[dict[str, Any]]:
        return []

    def _time_left(self) -> TimeLeft:
        return TimeLeft(
            self._steps_to_know(), lambda: getattr(self.memory, "seconds", {}), tokens=lambda: tokens_read(self)
        )

    def _begun(self) -> dict[str, Any]:
        plan = getattr(self.memory, "plan", None)
        phases = {} if plan is None else {name: phase.bytes for name, phase in plan.phases.items()}
        return {
            "trainer": type(self).__name__,
            "config": self._run_record()["config"],
            "bits": loaded_bits(self.model.config),
            "plan": phases,
            "trackers": self._trackers.runs(),
        }

    def _ended_with(self) -> dict[str, Any]:
        return {"peaks": {phase: reserved for phase, (_, reserved) in getattr(self.memory, "measured", {}).items()}}

    def _ended_before(self) -> str:
        folder, step = self.args.output_dir, self.state.global_step
        stages = hasattr(self.args, "num_stages")  # of which a run's length follows
        longer = "num_stages" if stages else "max_steps or num_train_epochs"
        longer = "level_stages, as its scores were level" if step < self.state.max_steps else longer
        return (
            f"{type(self).__name__}.train, output_dir {folder!r}: this run was finished already, after step {step} of "
            f"{self.state.max_steps}: nothing was trained, and its record stays as it is. To go on for longer, raise "
            f"{longer}; to begin anew, give another output_dir."
        )

    def _step_of(self, checkpoint: str | None) -> int:
        """The step of a checkpoint of this run's folder, which need not be written again; else 0."""
        found = None if checkpoint is None else re.fullmatch(r"checkpoint-(\d+)", Path(checkpoint).resolve().name)
        own = Path(checkpoint or "").resolve().parent == Path(self.args.output_dir).resolve()
        return int(found[1]) if found and own else 0

    def _between_parts(self) -> None:
        """End the run here if it was asked to: no step is under way, and what was made since the last is on disk."""
        if self._stop is None or not self._stop.ends_between_parts():
            return
        step, kept = self.state.global_step, "what was sampled is kept"
        if not step:
            raise RunStopped(f"before its first step; {kept}")
        if step > self._stop.kept_at:
            self._save_checkpoint(self.model_wrapped, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        raise RunStopped(f"{self._stopped(step)}; {kept}")

    def _stopped(self, step: int) -> str:
        how = "save_only_model=True keeps what going on would need out of it"
        if not self.args.save_only_model:
            how = "train(resume_from_checkpoint=True) goes on from it"
        return f"after step {step} of {self.state.max_steps}, with checkpoint-{step} ({how})"
