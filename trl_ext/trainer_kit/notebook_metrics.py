"""What a trainer shows in a notebook while it trains: a bar, and a table of what matters of its method."""

from collections.abc import Sequence

from transformers import Trainer
from transformers.utils.notebook import NotebookProgressCallback


class NotebookMetrics(NotebookProgressCallback):
    """transformers' bar of a notebook, over a row for each step that is logged instead of "Step | Training Loss".

    Args:
        names: Of logged metrics, in the order of the columns. One that never comes has no column. Of evaluations, those
            with `eval_` before these names.
    """

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = tuple(names)

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.training_tracker.inner_table = None  # its columns come with the first row

    def on_log(self, args, state, control, logs=None, **kwargs):
        self._write(state.global_step, logs or {}, self.names)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self._write(state.global_step, metrics or {}, [f"eval_{name}" for name in self.names])
        self.prediction_bar = None
        if self.training_tracker is not None:
            self.training_tracker.remove_child()
            self._force_next_update = True

    def _write(self, step: int, logged: dict[str, float], names: Sequence[str]) -> None:
        row = {name: f"{logged[name]:.4g}" for name in names if isinstance(logged.get(name), int | float)}
        if row and self.training_tracker is not None:
            self.training_tracker.write_line({"Step": step} | row)


def show_in_notebook(trainer: Trainer, names: Sequence[str]) -> None:
    """Where transformers has given a trainer the bar of a notebook, put this one in its place."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) is NotebookProgressCallback:
            trainer.remove_callback(callback)
            trainer.add_callback(NotebookMetrics(names))
