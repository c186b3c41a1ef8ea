"""Rows of completions with their scores, as arrays of pairs. R rows, N pairs: each chosen with each rejected of its row."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import comb

import numpy as np

from trl_ext.reward_evaluation.pair_rows import STYLES, Compared
from trl_ext.reward_evaluation.pair_statistics import verdicts
from trl_ext.sequences.texts import text_of

LEVELS = ("hard", "normal", "easy")  # of RM-Bench: the chosen one in a plainer, the same, a fancier style


@dataclass(frozen=True)
class ScoredPairs:
    """What one reward gave.

    Args:
        compared: The rows, R.
        scores: Of each row, of its completions as `Compared.completions` has them; None where the reward does not apply.
        styled: Whether the rows are RM-Bench's.
    """

    compared: Sequence[Compared]
    scores: Sequence[Sequence[float | None]]
    styled: bool

    @cached_property
    def is_scored(self) -> np.ndarray:
        """Rows of which all completions have a score, `(R,)`."""
        return np.array([None not in scores for scores in self.scores])

    @cached_property
    def lengths(self) -> list[list[int]]:
        """In characters, which no tokenizer and no language has a say in."""
        return [[len(text_of(text).strip()) for text in each.completions] for each in self.compared]

    @cached_property
    def places(self) -> list[tuple[int, int, int]]:
        """Row, chosen and rejected completion of each pair, N, of scored rows."""
        return [
            (row, one, other)
            for row, each in enumerate(self.compared)
            if self.is_scored[row]
            for one, other in product(range(len(each.chosen)), range(len(each.chosen), len(each.completions)))
        ]

    @cached_property
    def rows(self) -> np.ndarray:
        return np.array([row for row, _, _ in self.places], dtype=int)

    @cached_property
    def weights(self) -> np.ndarray:
        """1 / the pairs of the row: every row weighs the same, `(N,)`."""
        return 1 / np.bincount(self.rows, minlength=len(self.compared))[self.rows]

    @cached_property
    def gaps(self) -> np.ndarray:
        """Δ: score of the chosen less that of the rejected completion, `(N,)`."""
        return np.array([self.scores[row][one] - self.scores[row][other] for row, one, other in self.places])

    @cached_property
    def longer_by(self) -> np.ndarray:
        """The same of lengths, in characters, `(N,)`."""
        lengths = self.lengths
        return np.array([lengths[row][one] - lengths[row][other] for row, one, other in self.places], dtype=float)

    @cached_property
    def right(self) -> np.ndarray:
        """How right the reward is in each row, 1, ½ for a tie, 0, `(R,)`; NaN where it gave no score.

        Of several completions of one kind: whether the worst chosen one is above the best rejected one, as RewardBench
        counts; in RM-Bench's styles the mean over all pairs.
        """
        scored = zip(self.scores, self.is_scored, strict=True)
        return np.array([self._row(row, given) if ok else np.nan for row, (given, ok) in enumerate(scored)])

    @cached_property
    def right_by_length(self) -> np.ndarray:
        """The same of a reward that is the length."""
        return np.array([self._row(row, lengths) for row, lengths in enumerate(self.lengths)])

    @cached_property
    def chance(self) -> np.ndarray:
        """The same of one that draws scores at random, in the mean."""
        return np.array([0.5 if self.styled else 1 / comb(len(x.completions), len(x.chosen)) for x in self.compared])

    @cached_property
    def right_by_level(self) -> dict[str, np.ndarray]:
        """Of RM-Bench, by level: how right in each row, `(R,)`; empty otherwise."""
        return self._by_level(self.gaps)

    @cached_property
    def right_by_level_and_length(self) -> dict[str, np.ndarray]:
        """The same of a reward that is the length."""
        return self._by_level(self.longer_by)

    def sums_by_row(self, values: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
        """Σ w · value of each row's pairs, `(R, …)`."""
        weights = self.weights if counted is None else self.weights * counted
        sums = np.zeros((len(self.compared), *values.shape[1:]))
        np.add.at(sums, self.rows, values * weights.reshape(-1, *[1] * (values.ndim - 1)))
        return sums

    def mean_by_row(self, values: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """NaN in a row where no pair is counted."""
        with np.errstate(invalid="ignore"):
            return self.sums_by_row(values, counted) / self.sums_by_row(np.ones(len(values)), counted)

    def _by_level(self, gaps: np.ndarray) -> dict[str, np.ndarray]:
        if not self.styled:
            return {}
        found = {}
        for name, sign in zip(LEVELS, (-1, 0, 1), strict=True):
            cells = [np.sign(one - (other - len(STYLES))) == sign for _, one, other in self.places]
            found[name] = self.mean_by_row(verdicts(gaps), np.array(cells))
        return found

    def _row(self, row: int, scores: Sequence[float]) -> float:
        count = len(self.compared[row].chosen)
        chosen, rejected = np.array(scores[:count], float), np.array(scores[count:], float)
        if self.styled:
            return float(verdicts(chosen[:, None] - rejected).mean())
        return float(verdicts(chosen.min() - rejected.max()))
