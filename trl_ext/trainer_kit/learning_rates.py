"""The learning rate of a policy, where it is left open."""

from typing import NamedTuple


class LearningRates(NamedTuple):
    """A method's defaults, by what is trained: all weights, or an adapter, which takes ten times as much."""

    full: float
    adapter: float

    def default(self, *, has_adapter: bool) -> float:
        return self.adapter if has_adapter else self.full
