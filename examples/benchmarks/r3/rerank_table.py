"""The tables of `rerank`: what each arm chooses, beside another arm, over prompts."""

from statistics import mean

import numpy as np

from examples.benchmarks.common.over_seeds import paired_difference
from examples.benchmarks.r3.rerank_arms import CHANCE, Pool, chosen, compared, per_prompt
from examples.benchmarks.r3.rerank_statistics import win_rate_at_equal_length
from trl_ext.reward_evaluation.order_statistics import nominal_kl

RESAMPLINGS = 200


def sizes(count: int) -> list[int]:
    """1, 2, 4, … up to the number of samples.

    >>> sizes(24)
    [1, 2, 4, 8, 16, 24]
    """
    return sorted({*(2**k for k in range(count.bit_length()) if 2**k <= count), count})


def by_size(pool: Pool, column: str) -> str:
    """One line per arm, one column per n, each the mean over prompts."""
    values = pool.columns[column]
    counts = sizes(values.shape[1])
    lines = [["n", *map(str, counts)], ["KL ≤, nats", *(f"{nominal_kl(n):.2f}" for n in counts)]]
    chances = {n: chosen(pool, n) for n in counts}
    lines += [[arm, *(_mean(chances[n][arm], values) for n in counts)] for arm in chances[counts[0]]]
    return markdown(lines)


def at_size(pool: Pool, n: int, kept: np.ndarray | None = None) -> str:
    """One line per arm, one column per measure; of the prompts that are kept, `(P,)`."""
    kept = np.full(len(pool.types["given"]), True) if kept is None else kept
    columns = {name: column[kept] for name, column in pool.columns.items()}
    lines = [[f"n = {n}", *columns]]
    lines += [[arm, *(_mean(own[kept], c) for c in columns.values())] for arm, own in chosen(pool, n).items()]
    return markdown(lines)


def differences(pool: Pool, column: str, n: int, pairs: list[tuple[str, str]]) -> str:
    """Of pairs of arms, paired over prompts: mean ± standard error, and whether it is 2.8 of those."""
    chances, values = chosen(pool, n), pool.columns[column]
    lines = [[f"{column}, n = {n}", "difference", "prompts"]]
    for one, other in pairs:
        ours, theirs = (_known(per_prompt(chances[arm], values)) for arm in (one, other))
        lines.append([f"{one} − {other}", paired_difference(ours, theirs) if ours else "–", str(len(ours))])
    return markdown(lines)


def win_rates(pool: Pool, scores: np.ndarray, n: int) -> str:
    """Against a random choice by a judge's scores, in percent: raw, and where neither answer is longer."""
    chances, lengths = chosen(pool, n), pool.factors["tokens"]
    lines = [[f"n = {n}", "wins, %", "wins at equal length, %"]]
    for arm, own in chances.items():
        wins, losses, apart = compared(own, chances[CHANCE], scores, lengths)
        raw = wins.sum(1) / (wins + losses).sum(1)
        level, error = with_error(wins, losses, apart)
        lines.append(
            [
                arm,
                f"{100 * raw.mean():.1f} ± {100 * raw.std(ddof=1) / len(raw) ** 0.5:.1f}",
                f"{100 * level:.1f} ± {100 * error:.1f}",
            ]
        )
    return markdown(lines)


def with_error(wins: np.ndarray, losses: np.ndarray, apart: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The win rate at equal length, and its standard error by drawing prompts anew with replacement."""
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(RESAMPLINGS):
        prompts = rng.integers(len(wins), size=len(wins))
        drawn.append(_level(wins[prompts].sum(0), losses[prompts].sum(0), apart))
    return _level(wins.sum(0), losses.sum(0), apart), float(np.std(drawn))


def _level(wins: np.ndarray, losses: np.ndarray, apart: np.ndarray) -> float:
    there = wins + losses > 0
    return float(win_rate_at_equal_length(wins[there], losses[there], apart[there]))


def _known(values: np.ndarray) -> list[float]:
    return values[~np.isnan(values)].tolist()


def _mean(chances: np.ndarray, column: np.ndarray) -> str:
    """Samples that are never chosen need no value."""
    values = _known((chances * np.where(chances > 0, column, 0)).sum(1))
    return f"{mean(values):.3f}" if values else "–"


def markdown(lines: list[list[str]]) -> str:
    """A table whose first line is its heading.

    >>> print(markdown([["", "a"], ["x", "1"]]))
    |  | a |
    |---|---|
    | x | 1 |
    """
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])
