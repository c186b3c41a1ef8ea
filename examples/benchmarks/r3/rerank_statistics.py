"""What `rerank` computes, as pure functions. What the best of n is, is in the package."""

import re
from collections.abc import Sequence

import numpy as np

from trl_ext.sequences.texts import wordpunct

AS_SETS = ("taxonomy_animal", "orthography_starts_with")  # tasks whose answers are words in any order
ROUNDS = 25  # of Newton's method


def normalised(answer: str) -> str:
    r"""What exact match compares: the first line that is not empty, without case, quotes and punctuation around it.

    >>> normalised('\n "Not the Same." \nBecause')
    'not the same'
    """
    line = next((line for line in answer.splitlines() if line.strip()), "")
    return " ".join(re.sub(r"^[\W_]+|[\W_]+$", "", line.casefold()).split())


def exact_match(answer: str, reference: str, task: str = "") -> float:
    """1 where both are the same once normalised; of AS_SETS the words in any order, each once.

    >>> exact_match("Cat, dog.", "dog, cat", "taxonomy_animal"), exact_match("85!", "85"), exact_match("", "85")
    (1.0, 1.0, 0.0)
    """
    pair = normalised(answer), normalised(reference)
    if task in AS_SETS:
        return float(len({tuple(sorted(re.findall(r"\w+", text))) for text in pair}) == 1)
    return float(pair[0] == pair[1])


def identified(scores: Sequence[float], own: int) -> float:
    """1 where a prompt's own score is the highest of all prompts', shared among those that have the same.

    >>> identified([0.0, 3.0, 1.0], own=1), identified([2.0, 2.0], own=0), identified([1.0, 2.0], own=0)
    (1.0, 0.5, 0.0)
    """
    best = max(scores)
    return (scores[own] == best) / sum(score == best for score in scores)


def repeated_share(ids: Sequence[int], n: int = 4) -> float:
    """Share of the n-grams of tokens that were there before; 0 where there is none.

    >>> repeated_share([1, 2, 1, 2, 1], n=2)
    0.5
    """
    grams = list(zip(*(ids[i:] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def copied_share(answer: str, prompt: str, n: int = 3) -> float:
    """Share of an answer's n-grams of words that its prompt has; 0 where there is none.

    >>> copied_share("Where is the big cat?", "Where is the cat?", n=2)
    0.6
    """
    ours, theirs = (list(zip(*(wordpunct(text)[i:] for i in range(n)), strict=False)) for text in (answer, prompt))
    return sum(gram in set(theirs) for gram in ours) / len(ours) if ours else 0.0


def win_rate_at_equal_length(wins: np.ndarray, losses: np.ndarray, differences: np.ndarray) -> float:
    """σ(a) of the logistic regression P(win) = σ(a + b · Δ / s): the win rate where neither answer is longer.

    s is the standard deviation of Δ, so that b says what one deviation is worth. A little is taken off a² + b² (ridge
    of 0.01 of a comparison), which keeps them finite where one side always wins.

    Args:
        wins, losses: Weights of comparisons with that difference in length, which need not be whole, `(D,)`.
        differences: Δ, our length minus theirs, `(D,)`.

    >>> float(win_rate_at_equal_length(np.array([3.0]), np.array([1.0]), np.array([0.0])).round(3))
    0.747
    """
    weights = wins + losses
    middle = (weights * differences).sum() / weights.sum()
    spread = np.sqrt((weights * (differences - middle) ** 2).sum() / weights.sum()) or 1.0
    x, beta = np.stack([np.ones(len(differences)), differences / spread], axis=1), np.zeros(2)
    for _ in range(ROUNDS):
        p = 1 / (1 + np.exp(-x @ beta))
        gradient = x.T @ (wins - weights * p) - 0.01 * beta
        beta = beta + np.linalg.solve((x.T * (weights * p * (1 - p))) @ x + 0.01 * np.eye(2), gradient)
    return 1 / (1 + np.exp(-beta[0]))
