"""What came of a labelling: what the labeler goes by beside the completions, how often it is right, what it cost."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trl_ext.ai_feedback.judging import Judgement
from trl_ext.ai_feedback.preference_pairs import Pair
from trl_ext.reward_evaluation.pair_statistics import (
    calibration_error,
    calibration_sums,
    confidences,
    verdicts,
    wilson_interval,
)

UNDECIDED = 0.05  # |P − ½| below which a pair is not decided
LITTLE_MASS = 0.5  # of both answers, below which is warned


@dataclass(frozen=True)
class PreferenceReport:
    """Of one call of a labeler; it prints as lines, and `to_dict()` has all.

    Args:
        pairs: That have a label.
        equal: Pairs left out, their completions being equal.
        asked: Questions that were asked by this call; others were kept, or there twice.
        position_bias: Share of pairs of which the same place is preferred after the swap. 0: none; a labeler that goes by
            place alone has 1.
        first_place: Mean P(the one in the first place is better), over both orders; ½ is no liking.
        undecided: Share of pairs with |P − ½| < 0.05.
        agreement: With given labels: share of those above or below ½ on the same side, ½ for a tie; None where none are given.
        agreement_interval: In which the true share lies, 95 times in a hundred (Wilson).
        calibration_error: Expected calibration error of P against given labels, over ten bins of confidence.
        mass: Mean probability of both answers together.
        cut: Prompts that were cut to fit the window.
        tokens, seconds: What was read and written by this call, and how long it took.
    """

    pairs: int
    equal: int
    asked: int
    position_bias: float
    first_place: float
    undecided: float
    agreement: float | None
    agreement_interval: tuple[float, float] | None
    calibration_error: float | None
    mass: float
    cut: int
    tokens: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        left_out = f", {self.equal} left out with equal completions" if self.equal else ""
        lines = {
            "pairs": f"{self.pairs:,}{left_out}",
            "same place after the swap": f"{self.position_bias:.1%} (first place: {self.first_place:.1%})",
            "undecided": f"{self.undecided:.1%}",
            "agreement with given labels": self._agreement(),
            "mass on the answers": f"{self.mass:.1%}",
            "cost": f"{self.asked:,} asked, {self.tokens:,} tokens, {self.seconds:,.1f} s",
        }
        if self.cut:
            lines["prompts cut"] = f"{self.cut:,}"
        return "\n".join(f"{name:28} {value}" for name, value in lines.items())

    def _agreement(self) -> str:
        if self.agreement is None:
            return "none are given"
        low, high = self.agreement_interval
        return f"{self.agreement:.1%}, 95 % of {low:.1%} to {high:.1%}; calibration error {self.calibration_error:.3f}"


def report_of(
    judgements: Sequence[Judgement],
    given: Sequence[float | None],
    *,
    equal: int,
    asked: int,
    tokens: int,
    seconds: float,
) -> PreferenceReport:
    """Of one judgement or more, each beside P(the first is better) as it is given."""
    probabilities = np.array([each.probability for each in judgements])
    places = np.array([each.places for each in judgements])
    agreement, interval, error = agreement_with(probabilities, given)
    return PreferenceReport(
        pairs=len(judgements),
        equal=equal,
        asked=asked,
        position_bias=float(((places - 0.5).prod(1) > 0).mean()),
        first_place=float(places.mean()),
        undecided=float((np.abs(probabilities - 0.5) < UNDECIDED).mean()),
        agreement=agreement,
        agreement_interval=interval,
        calibration_error=error,
        mass=float(np.mean([each.mass for each in judgements])),
        cut=sum(each.cut > 0 for each in judgements),
        tokens=tokens,
        seconds=seconds,
    )


def warn_of(
    report: PreferenceReport,
    pairs: Sequence[Pair],
    judgements: Sequence[Judgement | None],
    answers: tuple[str, str],
    *,
    call: str,
) -> None:
    """Warn of pairs that were left out, of prompts that were cut, and of a labeler that would answer something else."""
    equal = [pair.row for pair in pairs if pair.is_equal]
    cut = {pair.row: each.cut for pair, each in zip(pairs, judgements, strict=True) if each is not None and each.cut}
    said = []
    if equal:
        said.append(
            f"{len(equal)} of {len(pairs)} pairs, that of row {equal[0]} first, are left out: their completions are equal."
        )
    if cut:
        most = max(cut, key=cut.__getitem__)
        said.append(
            f"{len(cut)} of {len(pairs)} prompts lost their beginning, to fit the labeler's window; that of row {most} most, "
            f"{cut[most]} tokens. Shorten them, or take a labeler of a longer window."
        )
    if report.mass < LITTLE_MASS:
        said.append(
            f"the labeler gives {report.mass:.1%} of its probability to the answers {answers[0]!r} and {answers[1]!r}, and the "
            "rest to words that were not asked for: what labels say is doubtful. Give examples, another preamble or another "
            "labeler, and look at `report`."
        )
    for each in said:
        warnings.warn(f"{call}: {each}", stacklevel=4)


def agreement_with(
    probabilities: np.ndarray, given: Sequence[float | None]
) -> tuple[float | None, tuple[float, float] | None, float | None]:
    """Share of pairs that are on the same side of ½, its interval, and the expected calibration error.

    >>> agreement_with(np.array([0.9, 0.8, 0.3, 0.5]), [1.0, 0.0, 0.0, 1.0])[0]
    0.625
    """
    sides = np.array([0.0 if each is None else np.sign(each - 0.5) for each in given])
    told = sides != 0
    if not told.any():
        return None, None, None
    gaps = _logits(probabilities[told]) * sides[told]  # of the given better one less the other
    right = verdicts(gaps)
    sums = calibration_sums(confidences(gaps), right, np.ones(len(gaps)))
    return float(right.mean()), wilson_interval(float(right.mean()), len(gaps)), float(calibration_error(sums.sum(0)))


def _logits(probabilities: np.ndarray) -> np.ndarray:
    inside = probabilities.clip(1e-12, 1 - 1e-12)
    return np.log(inside) - np.log1p(-inside)
