"""What a stage keeps: the config's choice among the functions of `selection.py`, applied to a Grow's samples."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import trl_ext.self_training.selection as selection
from trl_ext.self_training.self_training_config import SelfTrainingConfig
from trl_ext.self_training.self_training_rules import best_of

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scored:
    """The columns of a Grow that selection reads, one value per sample.

    Args:
        prompts: Number of the sample's prompt.
        scores: NaN where no reward applies.
        ended, duplicate: Whether it came to its own end; whether its prompt has the same completion before it.
        kl: log π − log π at the run's beginning, summed over the completion; None where λ is 0.
    """

    prompts: NDArray[np.integer]
    scores: Floats
    ended: Mask
    duplicate: Mask
    kl: Floats | None = None


@dataclass(frozen=True)
class Selected:
    """What came of it.

    Args:
        keys: What was ranked by: the mapped score, less λ · KL; NaN where there is no score.
        kept: In how many of the stage's Improves a sample is kept, from the first on.
        dropped: How many samples were left out beforehand, by reason.
    """

    keys: Floats
    kept: NDArray[np.integer]
    dropped: dict[str, int]


def mapped_scores(scores: Floats, bounds: tuple[float, float] | None) -> Floats:
    """Scores on [0, 1], those beyond the bounds at 0 and 1; as they are without bounds.

    >>> mapped_scores(np.array([-1.0, 0.0, 5.0, 20.0]), (0.0, 10.0))
    array([0. , 0. , 0.5, 1. ])
    """
    if bounds is None:
        return scores
    low, high = bounds
    return ((scores - low) / (high - low if high > low else 1.0)).clip(0.0, 1.0)


def score_bounds(
    scores: Floats, earlier: Iterable[Floats], args: SelfTrainingConfig, *, stage: int
) -> tuple[float, float] | None:
    """What the map takes to 0 and 1: given, or the least and highest of this Grow's scores, or of `earlier` ones too."""
    if args.score_map == "none":
        return None
    if args.score_map == "fixed":
        low, high = args.score_range
        outside = np.mean((scores < low) | (scores > high))  # NaN is in neither
        if outside:
            warnings.warn(
                f"{outside:.0%} of the scores of stage {stage + 1} lie outside score_range=[{low:g}, {high:g}] (they go "
                f"from {np.nanmin(scores):g} to {np.nanmax(scores):g}) and are taken for its ends. Give a wider range, or "
                "score_map='running'.",
                stacklevel=2,
            )
        return low, high
    seen = np.concatenate([scores, *(earlier if args.score_map == "running" else [])])
    return None if np.isnan(seen).all() else (float(np.nanmin(seen)), float(np.nanmax(seen)))


def select(samples: Scored, args: SelfTrainingConfig, *, bounds: tuple[float, float] | None, seed: int) -> Selected:
    """Rank the samples that may be kept, and keep what the config says, for every Improve of a stage.

    Args:
        samples: All of the Grow's.
        args: Its fields under "Selection", `beta` and `num_generations`.
        bounds: The scores that the map takes to 0 and 1; None for no map.
        seed: Of the random control.
    """
    keys = mapped_scores(samples.scores, bounds)
    if samples.kl is not None:
        keys = keys - args.beta * samples.kl
    eligible, dropped = _eligible(samples, args)
    kept = np.zeros(len(keys), dtype=np.int32)
    chosen = np.flatnonzero(eligible)
    for threshold in args.thresholds or [None]:
        kept[chosen] += _keep(keys[chosen], samples.prompts[chosen], args, threshold, len(keys), seed)
    return Selected(keys, kept, dropped)


def _eligible(samples: Scored, args: SelfTrainingConfig) -> tuple[Mask, dict[str, int]]:
    """Samples that may be kept, and how many were left out, each by the first reason that it meets."""
    eligible, dropped = np.ones(len(samples.scores), dtype=bool), {}
    reasons = {"unscored": np.isnan(samples.scores)}
    if args.drop_truncated:
        reasons["truncated"] = ~samples.ended
    if args.drop_duplicates:
        reasons["duplicate"] = samples.duplicate
    for name, bad in reasons.items():
        dropped[name] = int((eligible & bad).sum())
        eligible &= ~bad
    if args.drop_alike:
        rows = np.flatnonzero(eligible)
        alike = rows[~selection.varied_prompts(samples.scores[rows], samples.prompts[rows])]
        dropped["alike"] = len(alike)
        eligible[alike] = False
    return eligible, dropped


def _keep(
    keys: Floats, prompts: NDArray, args: SelfTrainingConfig, threshold: float | None, sampled: int, seed: int
) -> Mask:
    keep = _by_selection(keys, prompts, args, threshold, sampled)
    if args.max_kept_per_prompt is not None:
        keep = selection.at_most_per_prompt(keep, keys, prompts, count=args.max_kept_per_prompt)
    return selection.random_of_same_size(keep, prompts, seed=seed) if args.random_selection else keep


def _by_selection(
    keys: Floats, prompts: NDArray, args: SelfTrainingConfig, threshold: float | None, sampled: int
) -> Mask:
    if not len(keys):
        return np.zeros(0, dtype=bool)
    match args.selection:
        case "local" if args.importance_clip is not None:  # RAFT++: all that share the prompt's highest score
            return selection.best_per_prompt(keys, prompts)
        case "local":
            count = best_of(args.num_generations, acceptance_ratio=args.acceptance_ratio)
            return selection.at_most_per_prompt(np.ones(len(keys), dtype=bool), keys, prompts, count=count)
        case "global":  # a share of what was sampled, also where some of it may not be kept
            ratio = args.acceptance_ratio or 1 / args.num_generations
            return selection.best_overall(keys, acceptance_ratio=min(1.0, ratio * sampled / len(keys)))
        case "threshold":
            return selection.above_threshold(keys, threshold=threshold)
        case "percentile":
            return selection.above_percentile(keys, prompts, percentile=100 * threshold)
        case _:
            return selection.above_interpolation(keys, prompts, gamma=threshold)
