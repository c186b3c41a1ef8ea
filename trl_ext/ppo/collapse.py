"""Signs that a run goes wrong, before its reward shows it: a way around the reward, answers that never end."""

import warnings
from dataclasses import dataclass, field
from statistics import mean

from trl_ext.sequences.turn_end import TEACH_THE_END
from trl_ext.trainer_kit.processes import is_main_process

WHAT_TO_TURN = (
    "Longer or at the limit, surer and further from the start: the policy may have found a way around the reward. Read its samples; raise "
    "beta, lower learning_rate or num_iterations, or charge for length or a missing end. Said once."
)
WINDOW = 5  # batches of rollouts that are compared
FIRST = 3  # batches of rollouts in which something should have ended
LONGER, SURER, FURTHER = 1.25, 0.75, 1.5
AT_LIMIT, FAR = 0.95, 1.0  # of max_completion_length; nats per token


@dataclass
class CollapseWatch:
    """Compares the last rollouts with the first: length up, while perplexity of own samples falls and KL rises.

        collapsed = length ≥ 1.25 · length₀  and  perplexity ≤ 0.75 · perplexity₀  and  KL ≥ 1.5 · KL₀
                 or length ≥ 0.95 · limit    and  perplexity ≤ 0.75 · that of the first batch  and  KL ≥ 1 nat per token

    Means over 5 batches of rollouts each. The second line is for short completions, which cannot grow: they are at their
    limit, and far from the start, which the first batch alone was sampled by. Secrets of RLHF (arXiv:2307.04964, figures 4 to 6) finds these before the
    judgement of people falls, while the reward still rises. A reward that pays for length will show them too: they
    tell where to look, not what is true.

    Attributes:
        limit: Longest completion, in tokens; None: not known.
        history: Per batch of rollouts: mean length in tokens, perplexity, KL per completion in nats.
        warned: Whether it was said.
    """

    limit: int | None = None
    history: list[list[float]] = field(default_factory=list)
    warned: bool = False

    def update(self, *, length: float, perplexity: float, kl: float) -> None:
        """Take in one batch of rollouts; warn of the signs when they first are there."""
        self.history.append([length, perplexity, kl])
        del self.history[WINDOW:-WINDOW]  # what lies between is not looked at
        if self.collapsed and not self.warned:
            self.warned = True
            warnings.warn(f"PPOTrainer: {self.signs()}. {WHAT_TO_TURN}", stacklevel=2)

    @property
    def collapsed(self) -> bool:
        """Whether the signs are there; never before two windows."""
        if len(self.history) < 2 * WINDOW:
            return False
        first, last = self._windows()
        grew = last[0] >= LONGER * first[0] and last[1] <= SURER * first[1] and last[2] >= FURTHER * first[2]
        return grew or self._is_cornered(last)

    def signs(self) -> str:
        """What the last window shows against the first, in words; of short completions against the first batch."""
        first, last = self._windows()
        first, limit = (self.history[0], f" of {self.limit}") if self._is_cornered(last) else (first, "")
        return (
            f"length {first[0]:.1f} → {last[0]:.1f}{limit} tokens, perplexity of own samples {first[1]:.2f} → {last[1]:.2f}, "
            f"KL {first[2]:.2f} → {last[2]:.2f} nats per completion"
        )

    def _is_cornered(self, last: list[float]) -> bool:
        """Whether completions are as long as they may be, and surer and far from the start none the less."""
        length, perplexity, kl = last
        at_limit = self.limit is not None and length >= AT_LIMIT * self.limit
        return at_limit and perplexity <= SURER * self.history[0][1] and kl >= FAR * length

    def _windows(self) -> list[list[float]]:
        """Means of the first window and of the last."""
        windows = self.history[:WINDOW], self.history[-WINDOW:]
        return [[mean(values) for values in zip(*window, strict=True)] for window in windows]


@dataclass
class EndWatch:
    """Warns once where no completion of the first three batches of rollouts ended itself.

    Each was then cut at max_completion_length, scored as it stands, and a reward model sees no end.

    Attributes:
        rollouts: Batches of rollouts so far.
        any_ended: Whether a completion of theirs ended.
    """

    rollouts: int = 0
    any_ended: bool = False

    def update(self, eos_ratio: float) -> None:
        """Take in the share of a batch's completions that ended."""
        self.rollouts += 1
        self.any_ended |= eos_ratio > 0
        if self.rollouts == FIRST and not self.any_ended and is_main_process():
            warnings.warn(
                f"PPOTrainer: no completion of the first {FIRST} batches of rollouts has ended (completions/eos_ratio is 0): "
                "all were cut at max_completion_length. Raise it, charge for a missing end (missing_eos_penalty), name a token "
                f"that ends an answer (stop_tokens), or {TEACH_THE_END}. Said once.",
                stacklevel=2,
            )
