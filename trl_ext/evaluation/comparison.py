"""What an evaluation found, how sure it is, and how it differs from another of the same prompts.

`P` prompts, `M` measures. A measure is a ratio of two sums over prompts, so that a resample of the prompts gives it anew.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset

from trl_ext.generation.protocol import OWN_GENERATORS
from trl_ext.trainer_kit.resampling import errors_to_see, standard_errors

PERPLEXITY = "perplexity"  # exp(Σ NLL / Σ tokens); all else are means
MADE_OF = "made_of"  # the last setting: what is behind the names of rewards and reference
UNEVEN = "uneven"  # a setting: [row, number of samples] of prompts that got more or fewer of them than `num_samples`
REFERENCE = "reference"  # a setting: its name, which may be another for the same numbers
GENERATOR = "generator"  # a setting: who sampled, which is what is compared


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found of a policy.

    Args:
        summary: Means over samples of each `reward/<name>` where it applies, of `kl` (exact) and `kl_k1` in nats per
            completion, of `length` in tokens with the end, and `ended_share`; `perplexity` of reference answers with
            their ends; `distinct_1`, `distinct_2`, `msttr` (None below 100 words) of all texts; what rewards log.
        samples: One row per sample: its prompt's number `row`, `sample`, texts, ids, `ended`, and the above of its own.
        settings: In which evaluations must agree to be compared; and who sampled, its `generator`, in which they need not.
        sums: Of each measure with an error, per prompt Σ of its values, and how many they are, `(P, 2)`.
    """

    summary: dict[str, float | None]
    samples: Dataset
    settings: dict[str, Any]
    sums: dict[str, np.ndarray]

    @cached_property
    def errors(self) -> dict[str, float]:
        """Standard errors of the summary's measures: bootstrap over prompts. NaN with fewer than two of them."""
        names = list(self.sums)
        found = standard_errors(lambda totals: values_of(names, totals), self._stacked(names))
        return dict(zip(names, found.tolist(), strict=True))

    def compare(self, other: "Evaluation") -> dict[str, dict[str, float]]:
        """This evaluation's measures less another's of the same prompts, each with its standard error.

        Prompts are resampled for both at once, so that what makes a prompt hard for both does not widen the error. Of
        each measure: `difference`; `error`; and `detectable`, the smallest true difference that so many prompts show four
        times in five: 2.8 · error of very many, more of few (Student's t). Evaluations of other prompts or settings are a
        ValueError, also where a prompt got fewer samples in one. A file or an endpoint is compared as a policy of its own, whose perplexity nobody knows.
        """
        if not isinstance(other, Evaluation):
            raise ValueError(f"Evaluation.compare({other!r:.60}): expected an Evaluation, from `evaluate`.")
        generators = {one.settings.get(GENERATOR, {}).get("name") for one in (self, other)}
        own = generators <= {None, *OWN_GENERATORS}  # others are no samples of the policy
        check_comparable(self.settings, other.settings, own=own)
        names = [name for name in self.sums if name in other.sums and (own or name != PERPLEXITY)]
        ours, theirs = self._stacked(names), other._stacked(names)
        values = values_of(names, ours.sum(0)) - values_of(names, theirs.sum(0))
        errors = standard_errors(lambda mine, yours: values_of(names, mine) - values_of(names, yours), ours, theirs)
        counts = [min((each[:, m, 1] > 0).sum() for each in (ours, theirs)) for m in range(len(names))]
        return {
            name: {"difference": value, "error": error, "detectable": errors_to_see(count - 1) * error}
            for name, value, error, count in zip(names, values.tolist(), errors.tolist(), counts, strict=True)
        }

    def _stacked(self, names: list[str]) -> np.ndarray:
        return np.stack([self.sums[name] for name in names], axis=1)

    def __repr__(self) -> str:
        errors = {name: f" ± {error:.3g}" for name, error in self.errors.items()}
        shown = {k: f"{v:.4g}{errors.get(k, '')}" for k, v in self.summary.items() if v is not None}
        return "\n".join(f"{name:{max(map(len, shown))}}  {value}" for name, value in shown.items())


def check_comparable(ours: dict[str, Any], theirs: dict[str, Any], *, own: bool) -> None:
    """Raise a ValueError that names the first setting in which two evaluations differ."""
    passed = {GENERATOR, MADE_OF}
    if None not in (ours.get(REFERENCE), theirs.get(REFERENCE)) or not own:
        passed.add(REFERENCE)  # its numbers tell, or there is no KL to compare
    made, others = ours.get(MADE_OF, {}), theirs | theirs.get(MADE_OF, {})
    for name, value in (ours | made).items():
        other = others.get(name, value)
        if other == value or name in passed:
            continue
        said = f"`{name}` is {value!r} here and {other!r}"
        if name in made:
            said = f"{name} has other settings or weights"
        if name == UNEVEN:
            said = f"the prompt of row {min({*map(tuple, value)} ^ {*map(tuple, other)})[0]} got more or fewer samples"
        raise ValueError(
            f"Evaluation.compare: {said} in the other evaluation, so they would differ by more than their policies. "
            "Evaluate both on the same prompts, which both answer, in the same way."
        )


def values_of(names: list[str], totals: np.ndarray) -> np.ndarray:
    """Measures `(M,)` of their sums over prompts `(M, 2)`; NaN where there is nothing to take a mean of."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratios = totals[:, 0] / totals[:, 1]
        return np.where(np.array(names) == PERPLEXITY, np.exp(ratios), ratios)
