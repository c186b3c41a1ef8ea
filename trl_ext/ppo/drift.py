"""How far the policy has moved from the one that sampled, and when a rollout's epochs are therefore over."""

from dataclasses import dataclass

from transformers import TrainerCallback


@dataclass
class PolicyDrift:
    """Ends the epochs over a batch of rollouts once KL to the sampling policy has passed a limit.

        KL(π_old ‖ π) ≈ mean over tokens of  ρ − 1 − log ρ        ρ = π / π_old, in nats; never negative

    Checked after each optimizer step, over its micro-batches. The rollout's remaining steps then run no forward pass
    and move nothing.

    Args:
        limit: In nats per token. Smaller: stops sooner; 0: after the second step, whose pass is the first to
            see any; None: never.

    Attributes:
        over: Whether the rollout in use is done with.
        skipped: Optimizer steps of the run that moved nothing for it.
    """

    limit: float | None = None
    over: bool = False
    skipped: int = 0

    def __post_init__(self):
        self._seen: list[float] = []

    def begin_rollout(self) -> None:
        self.over = False
        self._seen.clear()

    def add(self, kl: float) -> None:
        """Take in a micro-batch's KL, the same on every process."""
        self._seen.append(kl)

    def end_step(self) -> None:
        """An optimizer step has been made, or skipped."""
        if self.over:
            self.skipped += 1
        elif self.limit is not None and self._seen:
            self.over = sum(self._seen) / len(self._seen) > self.limit
        self._seen.clear()


class DriftCallback(TrainerCallback):
    """Tells the drift of each optimizer step, and logs how many were skipped.

    Args:
        drift: The run's.
        logged: Where numbers of training are logged from, by name.
    """

    def __init__(self, drift: PolicyDrift, logged: dict[str, list[float]]):
        self.drift, self.logged = drift, logged

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.drift.end_step()
        self.logged["skipped_steps"] = [float(self.drift.skipped)]  # the count now, not a mean of counts
