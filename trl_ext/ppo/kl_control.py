"""β, the price of KL: fixed, or moved towards a target."""

from dataclasses import dataclass

LARGEST_ERROR = 0.2  # of one update, as a share of the target
WIDEST = 100.0  # how many times β may grow or shrink over a run


@dataclass
class KLController:
    """The proportional controller of Ziegler et al. (2019, arXiv:1909.08593, section 2.2).

        e = clip((KL − target) / target, ± 0.2)
        β ← β · (1 + e · completions / horizon)

    KL above the target raises its price, below lowers it, by at most a fifth per `horizon` completions; within a
    hundredth and a hundred times of where it began, so that it can always come back. Without a target β stays.

    >>> control = KLController(beta=0.1, target=6.0, horizon=100)
    >>> control.update(60.0, completions=50)  # ten times the target: the error is clipped
    >>> round(control.beta, 3)
    0.11
    >>> control.update(3.0, completions=50)  # half the target
    >>> round(control.beta, 3)
    0.099

    Args:
        beta: Price of one nat of KL at the start, in units of score.
        target: KL per completion to keep to, in nats; None: β is fixed.
        horizon: Completions over which β follows. Larger: slower.
    """

    beta: float
    target: float | None = None
    horizon: float = 10_000

    def __post_init__(self):
        self._bounds = self.beta / WIDEST, self.beta * WIDEST

    def update(self, kl_per_completion: float, *, completions: int) -> None:
        """Take in the KL of a batch of rollouts, in nats per completion, mean over all processes."""
        if self.target is None:
            return
        error = (kl_per_completion - self.target) / self.target
        error = min(max(error, -LARGEST_ERROR), LARGEST_ERROR)
        low, high = self._bounds
        self.beta = min(max(self.beta * (1 + error * completions / self.horizon), low), high)
