"""Labels of one judge in several ways: one order or both, soft or hard, with a liking for the first place."""

import random
from collections.abc import Sequence
from math import exp, log
from statistics import mean

import numpy as np

ERRORS, BIASES = (0.3, 0.1), (0.0, 1.0, 2.0)
ONE_HARD, ONE_SOFT, BOTH_HARD, BOTH_SOFT = (
    "one order, hard",
    "one order, soft",
    "both orders, hard",
    "both orders, soft",
)
LABELLINGS = (ONE_HARD, ONE_SOFT, BOTH_HARD, BOTH_SOFT)


def with_bias(probability: float, logits: float) -> float:
    """P(the first) of a judge that likes the first place by so many logits more: what a bias of its head does.

    >>> round(with_bias(0.5, 2.0), 3)
    0.881
    """
    p = min(max(probability, 1e-9), 1 - 1e-9)
    return 1 / (1 + exp(-(log(p) - log(1 - p) + logits)))


def labels(places: Sequence[tuple[float, float]], bias: float, labelling: str) -> list[float]:
    """P(the first shown is better) of each pair, as one way of labelling has it; 0, ½ or 1 of hard labels."""
    shown = [tuple(with_bias(p, bias) for p in pair) for pair in places]
    soft = [one if labelling in (ONE_HARD, ONE_SOFT) else (one + 1 - turned) / 2 for one, turned in shown]
    return soft if labelling in (ONE_SOFT, BOTH_SOFT) else [(np.sign(p - 0.5) + 1) / 2 for p in soft]


def shown_pairs(pairs: list[dict], *, seed: int) -> tuple[list[dict], list[bool]]:
    """Each pair in an order drawn by the seed, and whether the first one is the better."""
    rng, rows, truth = random.Random(f"shown {seed}"), [], []
    for pair in pairs:
        first = rng.random() < 0.5
        sides = ("chosen", "rejected") if first else ("rejected", "chosen")
        rows.append({"prompt": pair["prompt"], "completion_1": pair[sides[0]], "completion_2": pair[sides[1]]})
        truth.append(first)
    return rows, truth


def labelled(rows: list[dict], probabilities: list[float], *, soft: bool) -> list[dict]:
    """As a reward model learns from them."""
    found = []
    for row, p in zip(rows, probabilities, strict=True):
        sides = (row["completion_1"], row["completion_2"])[:: 1 if p >= 0.5 else -1]
        found.append({"prompt": row["prompt"], "chosen": sides[0], "rejected": sides[1]})
        found[-1] |= {"chosen_probability": max(p, 1 - p)} if soft else {}
    return found


def of_labels(probabilities: list[float], truth: list[bool]) -> dict[str, float]:
    """Agreement with the truth, ½ for a tie, and the mean −log p of what is true."""
    right = [p if first else 1 - p for p, first in zip(probabilities, truth, strict=True)]
    return {
        "agreement": mean((np.sign(p - 0.5) + 1) / 2 for p in right),
        "log_loss": mean(-log(max(p, 1e-9)) for p in right),
    }


def logit(p: float) -> float:
    return log(p) - log(1 - p)
