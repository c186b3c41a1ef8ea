"""Looks at a run while it trains, and its end when it has cost enough."""

from collections.abc import Callable

from transformers import TrainerCallback

from examples.benchmarks.frontier.setting import Look

SHARES = (0.08, 0.2, 0.35, 0.55, 0.8, 1.0)  # of what is trained with: where a run is looked at


class Looks(TrainerCallback):
    """Looks after a share of the cost, and at last at its end.

    Args:
        look: Measures a policy.
        cost: Token passes so far.
        budget: Token passes at which a run ends.
        steps: Optimizer steps that learn from one batch of samples, which are not parted; None: RAFT and ReST, whose
            moments are between their Improves, and whose ends between stages.
        improves: Improves per stage, of RAFT and ReST.
    """

    def __init__(self, look: Look, cost: Callable[[], float], budget: float, *, steps: int | None, improves: int = 1):
        self.look, self.cost, self.budget, self.steps, self.improves = look, cost, budget, steps, improves
        self.points: list[dict[str, float]] = []
        self.left, self.began, self.done = list(SHARES), None, 0

    def on_step_begin(self, args, state, control, **kwargs):
        if self.began is None:
            self.began = self.cost()

    def on_step_end(self, args, state, control, *, model, **kwargs):
        if self.steps and state.global_step % self.steps == 0:
            self._seen(model)
            control.should_training_stop |= self.cost() >= self.budget

    def on_epoch_end(self, args, state, control, *, model, **kwargs):
        if self.steps:
            return
        self.done += 1
        stages = self.done / self.improves
        self._seen(model)
        over = self.cost() * (1 + 0.5 / stages) >= self.budget  # half of another stage would be above it
        control.should_training_stop |= stages.is_integer() and over

    def on_train_end(self, args, state, control, *, model, **kwargs):
        if not self.points or self.points[-1]["cost"] < self.cost():
            self._look(model)

    def _seen(self, model) -> None:
        share = (self.cost() - self.began) / max(self.budget - self.began, 1)
        if self.left and share >= self.left[0]:
            self.left = [mark for mark in self.left if mark > share]
            self._look(model)

    def _look(self, model) -> None:
        self.points.append(self.look(model) | {"cost": self.cost()})
