"""Which constants of R³ fit an encoder, and how well it tells relevant from irrelevant. N rows, D dimensions."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from trl_ext.rewards.calibration_rows import Rows, read_rows
from trl_ext.rewards.r3 import R3Reward
from trl_ext.rewards.relevance import RelevanceReward
from trl_ext.rewards.similarities import places, similarities
from trl_ext.rewards.told_apart import area_under_curve, deranged, standard_error, wins
from trl_ext.trainer_kit.resampling import BEYOND_CHANCE
from trl_ext.trainer_kit.seeds import check_seed

TOP = 0.95  # the quantile that is taken for the best


class Measured(NamedTuple):
    """One relevance by one similarity, of each row's own answer and of another row's, `(N,)` each."""

    name: Literal["r_x", "r_y"]
    similarity: Literal["dot", "cosine"]
    own: Tensor
    other: Tensor

    @property
    def accuracy(self) -> float:
        """Share of rows whose own answer is above the other."""
        return wins(self.own, self.other).mean().item()

    def __str__(self) -> str:
        own, other = (f"{values.mean():.3f} ± {values.std():.3f}" for values in (self.own, self.other))
        apart = f"{100 * self.accuracy:.1f} % ± {100 * standard_error(wins(self.own, self.other)):.1f}"
        area = f"{area_under_curve(self.own, self.other):.3f}"
        return f"{self.name} {self.similarity:6}{own:>16}{other:>18}{apart:>15}{area:>7}"


@dataclass(frozen=True, eq=False)
class RelevanceCalibration:
    """What was measured of an encoder, and the reward that follows from it.

    Attributes:
        relevance: Of this encoder, with the similarity that is proposed.
        top_relevance: For `R3Reward`.
        measured: r_x and, where completions were given, r_y; by dot product and by cosine.
        summary: What was printed.
    """

    relevance: RelevanceReward
    top_relevance: float
    measured: tuple[Measured, ...]
    summary: str

    def __str__(self) -> str:
        return self.summary

    def reward(self, **options) -> R3Reward:
        """R³ with this encoder and its constants; `options` are R3Reward's others, e.g. `max_completion_length`, `tokenize`."""
        return R3Reward(relevance=self.relevance, top_relevance=self.top_relevance, **options)


def calibrate_relevance(
    encoder: str | os.PathLike | nn.Module,
    dataset: Dataset | Sequence[dict],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    similarity: Literal["dot", "cosine"] | None = None,
    rows: int = 1000,
    seed: int = 0,
    **options,
) -> RelevanceCalibration:
    """Measure how an encoder sees a data set, in its language; print that, and propose R³'s constants for it.

        calibrate_relevance("facebook/mcontriever", dataset).reward(tokenize=characters)

    Printed are mean and deviation of r_x = M(x)·M(ŷ) and, with a column `completion`, of r_y = M(y)·M(ŷ), for a row's own
    answer and for that of another row (by a seeded derangement); in how many rows the own one is above, and the AUC. ŷ is
    the completion or else the reference.

    `top_relevance` is the 95 % quantile of r_y over good answers, as the paper's 3.5 is the best of them that its authors
    saw, less the outliers: those above it are paid more than an open answer of full length. Without completions it is that
    of M(y)·M(y), which is what an answer earns that equals its reference, and for vectors of one length all that can be
    earned: 1.0, where answers that people preferred give 0.958 (all-MiniLM-L6-v2, QA-Feedback), so either will do. Give
    completions only if they are good: by a weak policy's, what it learns later would be paid beyond an open answer.

    `similarity` is the paper's dot product unless the cosine is right in more rows beyond chance, by two standard errors of the difference.

    Args:
        encoder, tokenizer: As for `RelevanceReward`, which also takes `options`: max_length, batch_size, device, dtype.
        dataset: Rows with `prompt`, `reference`, and perhaps `completion` and `query_type`: where at least 50 are 'closed',
            r_y and `top_relevance` are of those. At least 50 rows, of different prompts.
        similarity: None: proposed.
        rows: Most that are looked at, drawn by `seed`.
        seed: Of that, and of which row's answer is the other.
    """
    check_seed(seed, call=f"calibrate_relevance(seed={seed!r})")
    relevance = RelevanceReward(encoder, tokenizer=tokenizer, similarity=similarity or "dot", **options)
    read = read_rows(dataset, most=rows, seed=seed)
    x, y, answers = _vectors(relevance, read.prompts, read.references, read.answers)
    measured = _measured(read, x, y, answers, seed=seed)
    relevance = replace(relevance, similarity=similarity or proposed_similarity(measured))
    top = _top(similarities(y, answers, kind=relevance.similarity)[read.closed])
    found = RelevanceCalibration(relevance, top, measured, _summary(relevance, top, measured, read, y))
    print(found)
    _warn_if_blind(measured, relevance.similarity)
    return found


def proposed_similarity(measured: Sequence[Measured]) -> Literal["dot", "cosine"]:
    """The paper's dot product, unless the cosine is right in more rows beyond chance."""
    by_name = {}
    for each in measured:
        by_name.setdefault(each.name, {})[each.similarity] = wins(each.own, each.other)
    gained = torch.cat([of["cosine"] - of["dot"] for of in by_name.values()])
    return "cosine" if gained.mean().item() > BEYOND_CHANCE * standard_error(gained) else "dot"


def _vectors(relevance: RelevanceReward, *columns: list[str]) -> list[Tensor]:
    """Of each column, `(N, D)`; every text is encoded once."""
    texts = list(dict.fromkeys(text for column in columns for text in column))
    vectors = relevance.vectors(texts)
    bad = (~vectors.isfinite().all(1)).nonzero()
    if len(bad):
        raise ValueError(
            f"calibrate_relevance: the encoder gives NaN or infinity for {len(bad)} of {len(texts)} texts, the first is "
            f"{texts[int(bad[0])][:60]!r}. Load it in fp32 (dtype='float32'), or take another."
        )
    return [vectors[places(column, texts)].cpu() for column in columns]


def _measured(read: Rows, x: Tensor, y: Tensor, answers: Tensor, *, seed: int) -> tuple[Measured, ...]:
    try:
        other = answers[deranged(read.references, seed=seed)]
    except ValueError as error:
        raise ValueError(
            f"calibrate_relevance: expected references that differ, so that another row's answer is a wrong one; {error}. "
            "Give rows of more than one question."
        ) from error
    found = []
    for kind in ("dot", "cosine"):
        found.append(Measured("r_x", kind, similarities(x, answers, kind=kind), similarities(x, other, kind=kind)))
        if read.given:
            pair = (similarities(y, each, kind=kind)[read.closed] for each in (answers, other))
            found.append(Measured("r_y", kind, *pair))
    return tuple(sorted(found, key=lambda each: each.name))


def _top(values: Tensor) -> float:
    top = float(f"{values.quantile(TOP):.3g}")
    if top <= 0:
        raise ValueError(
            f"calibrate_relevance: expected answers that are like their references, and {TOP:.0%} of the relevances are "
            f"not above {top}. Look at the columns `reference` and `completion`, or take another encoder."
        )
    return top


def _summary(relevance: RelevanceReward, top: float, measured: tuple[Measured, ...], read: Rows, y: Tensor) -> str:
    answers = "completions" if read.given else "references"
    lengths = y.norm(dim=1)
    named = f"{relevance.encoder!r}" if not isinstance(relevance.encoder, nn.Module) else "encoder, …"
    return "\n".join(
        [
            f"{len(read.prompts)} rows; answers: {answers}; vectors of length {lengths.mean():.3g} ± {lengths.std():.2g}",
            "               own answer     another row's     told apart    AUC",
            *map(str, measured),
            f"top_relevance: {TOP:.0%} of {'r_y' if read.given else 'M(y)·M(y)'} in {len(read.closed)} rows",
            f"→ R3Reward(relevance=RelevanceReward({named}, similarity={relevance.similarity!r}), top_relevance={top})",
        ]
    )


def _warn_if_blind(measured: tuple[Measured, ...], kind: str) -> None:
    for each in measured:
        error = standard_error(wins(each.own, each.other))
        if each.similarity == kind and each.accuracy - BEYOND_CHANCE * error <= 0.5:
            warnings.warn(
                f"calibrate_relevance: by {each.name} the encoder does not tell a row's own answer from another's "
                f"({100 * each.accuracy:.0f} % ± {100 * error:.0f}, by chance 50 %), so R³ would pay for length alone. "
                "Take another encoder, e.g. 'facebook/contriever', or 'facebook/mcontriever' for other languages.",
                stacklevel=3,
            )
