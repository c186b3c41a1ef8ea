"""The arms of `rerank`: what each makes of a pool's factors, and which samples it would choose.

A pool's arrays are `(P, N)`: P prompts, N samples of each.
"""

from dataclasses import dataclass, field

import numpy as np

from trl_ext.reward_evaluation.order_statistics import chances_to_be_best

R3, BY_CLASSIFIER, BY_CHANCE = "R³, T given", "R³, T by the classifier", "R³, T shuffled"
OPEN, PLAIN, RELEVANCE = "r_x·LI·RP everywhere", "LI·RP", "r_x"
LONGEST, CHANCE = "longest", "random choice"
ARMS = (R3, BY_CLASSIFIER, BY_CHANCE, OPEN, PLAIN, RELEVANCE, LONGEST, CHANCE)


@dataclass(frozen=True)
class Pool:
    """Factors and columns of the same samples.

    Args:
        factors: `r_x`, `r_y`, `LI`, `RP` and `tokens`, `(P, N)` each.
        types: Query types by who says so, P values of 'open', 'closed', or None where it abstains: `given` and, where
            it was asked, `classifier`.
        columns: What is measured, `(P, N)` each; NaN where a column does not apply.
        groups: What a prompt is one of several of, as its task, P of them: errors are between these. Without, each is alone.
        unlearned: Of which prompts the classifier has not learned the query, `(P,)`.
    """

    factors: dict[str, np.ndarray]
    types: dict[str, list[str | None]]
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    groups: list[str] | None = None
    unlearned: np.ndarray | None = None


def arm_scores(factors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores of the arms that need no query type, and of both of R³'s routes, `open` and `closed`.

    F's constant is left out: it is the same for all samples of a prompt, and orders none of them anew.
    """
    return {
        "open": factors["r_x"] * factors["LI"] * factors["RP"],
        "closed": factors["r_y"] * factors["RP"],
        PLAIN: factors["LI"] * factors["RP"],
        RELEVANCE: factors["r_x"],
        LONGEST: factors["tokens"],
        CHANCE: np.zeros_like(factors["r_x"]),
    }


def chosen(pool: Pool, n: int) -> dict[str, np.ndarray]:
    """How likely each arm chooses each sample, when it is shown n of a prompt's N, `(P, N)`.

    Shuffled types: each prompt is open with the share of prompts that are, exactly, so that no draw adds noise. By this
    the arm lies between both routes, and R³ less it is, of closed prompts, that share of R³ less the open route: it shows
    what errors of routing cost, and is no finding of its own. Where the classifier abstains, it is taken for what is commoner among the given types.
    """
    by = {name: chances_to_be_best(scores, n) for name, scores in arm_scores(pool.factors).items()}
    given = is_open(pool.types["given"])
    by[R3] = routed(by, given)
    by[BY_CHANCE] = routed(by, np.full(len(given), given.mean()))
    if "classifier" in pool.types:
        by[BY_CLASSIFIER] = routed(by, is_open(pool.types["classifier"], abstained=float(given.mean() > 0.5)))
    by[OPEN] = by["open"]
    return {arm: by[arm] for arm in ARMS if arm in by}


def routed(chances: dict[str, np.ndarray], share_open: np.ndarray) -> np.ndarray:
    """Chances where each prompt takes the open route with that probability, `(P,)`."""
    return share_open[:, None] * chances["open"] + (1 - share_open)[:, None] * chances["closed"]


def is_open(types: list[str | None], abstained: float = float("nan")) -> np.ndarray:
    """1 for 'open', 0 for 'closed'.

    >>> is_open(["open", "closed", None], abstained=0.0).tolist()
    [1.0, 0.0, 0.0]
    """
    unknown = sorted({kind for kind in types if kind not in ("open", "closed", None)})
    if unknown:
        raise ValueError(f"is_open: expected the query types 'open' and 'closed', got {unknown[0]!r}. Mend that row.")
    return np.array([abstained if kind is None else float(kind == "open") for kind in types])


def per_prompt(chances: np.ndarray, column: np.ndarray) -> np.ndarray:
    """What an arm is expected to choose, by a column, `(P,)`; NaN for prompts where the column does not apply."""
    return (chances * column).sum(1)


def compared(chances: np.ndarray, others: np.ndarray, scores: np.ndarray, lengths: np.ndarray) -> tuple:
    """One arm's choice beside another's of the same prompts: by prompt and difference in length, wins and losses.

    Every pair of samples counts with the probability that both are chosen, a tie as half of each.

    Args:
        chances, others: Of the two arms, `(P, N)`.
        scores: By which the better one wins, `(P, N)`.
        lengths: Whole numbers, `(P, N)`.

    Returns:
        Wins and losses, `(P, D)` each, and the differences Δ, `(D,)`.
    """
    reach = int(lengths.max() - lengths.min())
    wins, losses = np.zeros((2, len(scores), 2 * reach + 1))
    for p in range(len(scores)):
        both = np.outer(chances[p], others[p])
        better = (np.sign(scores[p][:, None] - scores[p][None, :]) + 1) / 2
        at = (lengths[p][:, None] - lengths[p][None, :]).astype(int) + reach
        np.add.at(wins[p], at, both * better)
        np.add.at(losses[p], at, both * (1 - better))
    return wins, losses, np.arange(-reach, reach + 1)
