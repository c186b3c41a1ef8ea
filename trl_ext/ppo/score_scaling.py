"""Scores brought to one scale for the whole run, so that the critic's targets are of order 1."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class RunningMoments:
    """Mean and variance of all scores seen so far, updated batch by batch (Chan et al., 1979).

        scaled = clip((score − mean) / deviation, ± clip)

    Secrets of RLHF (arXiv:2307.04964) finds this among the few things that keep PPO stable. Before the first
    update, and while all scores are equal, the deviation is unknown: then scores are only centred.

    >>> import torch
    >>> moments = RunningMoments()
    >>> moments.update(torch.tensor([0.0, 2.0]))
    >>> moments.update(torch.tensor([4.0]))
    >>> moments.mean, round(moments.deviation, 4)
    (2.0, 1.633)
    >>> moments.scale(torch.tensor([2.0, 100.0]), clip=10.0)
    tensor([ 0., 10.])
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # Σ (score − mean)²

    @property
    def deviation(self) -> float:
        """Biased standard deviation, in units of score; 0 before two different scores were seen."""
        deviation = (self.squares / max(self.count, 1)) ** 0.5
        return deviation if deviation > 1e-8 * max(1.0, abs(self.mean)) else 0.0  # less is rounding

    def update(self, scores: Tensor) -> None:
        """Take in a batch of scores, `(N,)`: those of all processes, so that every one scales alike."""
        if not scores.numel():
            return
        scores = scores.double()
        mean, count = scores.mean().item(), scores.numel()
        shift, total = mean - self.mean, self.count + count
        self.squares += (scores - mean).square().sum().item() + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    def scale(self, scores: Tensor, *, clip: float) -> Tensor:
        """`(N,)` scores in units of deviations from the mean, at most `clip` from it."""
        return ((scores - self.mean) / (self.deviation or 1.0)).clamp(-clip, clip)
