"""What an evaluation of a reward found, and how it differs from another reward's on the same pairs."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset

from trl_ext.reward_evaluation.pair_statistics import Bin
from trl_ext.trainer_kit.resampling import errors_to_see, standard_errors


@dataclass(frozen=True, eq=False)
class Findings:
    """What `evaluate_reward` found.

    Args:
        name: The reward's.
        summary: `accuracy` with its interval, `low` to `high`; `length_only`, `chance`; `rows`, `ties`; `log_loss` of σ(Δ), `ece`
            ± `ece_error` beside `ece_if_calibrated`; correlations with length; RM-Bench's levels. None: not measurable.
        groups: By "all" and each group: accuracy, low, high, rows, length_only, chance.
        reliability: Bins of confidence σ(|Δ|) with the share that is right.
        beyond_length: The logistic model of length and score; None of fewer than ten rows.
        worst: The pairs that the reward gets most wrong, the worst first.
        pairs: One row per pair: number of its row, scores, lengths, texts.
        notes: What must be known of the numbers.
        settings: In which evaluations must agree to be compared.
        sums: Of each measure that is a mean, of each row Σ of its values and their number, `(R, 2)`.
    """

    name: str
    summary: dict[str, Any]
    groups: dict[str, dict[str, Any]]
    reliability: list[Bin]
    beyond_length: dict[str, float] | None
    worst: list[dict[str, Any]]
    pairs: Dataset
    notes: list[str]
    settings: dict[str, Any]
    sums: dict[str, np.ndarray] = field(repr=False)

    @cached_property
    def errors(self) -> dict[str, float]:
        """Standard errors of the measures that are means: bootstrap over rows. NaN with fewer than two of them."""
        found = standard_errors(_means, np.stack(list(self.sums.values()), 1))
        return dict(zip(self.sums, found.tolist(), strict=True))

    def compare(self, other: "Findings") -> dict[str, dict[str, float]]:
        """This reward's measures less another's, on the rows that both score, each with its standard error.

        Rows are resampled for both at once, so that what makes a pair hard for both does not widen the error. Of each
        measure: `difference`; `error`; and `detectable`, the smallest true difference that so many rows show four times in
        five: 2.8 · error of very many, more of few (Student's t). Evaluations of other pairs are a ValueError.
        """
        self.check_comparable(other, call="RewardEvaluation.compare")
        ours, theirs = (np.stack(list(each.sums.values()), 1) for each in (self, other))
        both = (ours[..., 1:] > 0) & (theirs[..., 1:] > 0)
        ours, theirs, counts = ours * both, theirs * both, both.sum((0, 2)).tolist()
        values = _means(ours.sum(0)) - _means(theirs.sum(0))
        errors = standard_errors(lambda one, two: _means(one) - _means(two), ours, theirs)
        return {
            name: {"difference": value, "error": error, "detectable": errors_to_see(count - 1) * error}
            for name, value, error, count in zip(self.sums, values.tolist(), errors.tolist(), counts, strict=True)
            if not np.isnan(value)
        }

    def check_comparable(self, other: object, *, call: str) -> None:
        """Raise a ValueError for what is no evaluation, or one of other pairs."""
        if not isinstance(other, Findings):
            raise ValueError(f"{call}({other!r:.60}): expected what evaluate_reward gave. Give that.")
        for name, value in self.settings.items():
            if other.settings[name] != value:
                raise ValueError(
                    f"{call}: the {name} of {self.name!r} and {other.name!r} differ, so they would differ by more than their "
                    "rewards. Evaluate both on the same pairs, in the same way."
                )

    def to_dict(self) -> dict[str, Any]:
        """All numbers and the worst pairs, as JSON takes them."""
        return {
            "name": self.name,
            "summary": self.summary,
            "groups": self.groups,
            "reliability": [each._asdict() for each in self.reliability],
            "beyond_length": self.beyond_length,
            "worst": self.worst,
            "notes": self.notes,
        }

    def __repr__(self) -> str:
        shown = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in self.summary.items() if v is not None}
        return "\n".join([self.name, *(f"{name:{max(map(len, shown))}}  {value}" for name, value in shown.items())])


def _means(totals: np.ndarray) -> np.ndarray:
    """`(M,)` of sums over rows `(M, 2)`; NaN where there is nothing to take a mean of."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return totals[:, 0] / totals[:, 1]
