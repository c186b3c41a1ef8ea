"""The tables of `rerank`: what each arm chooses, beside another arm, over prompts."""

from statistics import mean

import numpy as np

from examples.benchmarks.common.over_seeds import paired_difference, standard_error
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


def differences(
    pool: Pool, names: list[str], n: int, pairs: list[tuple[str, str]], kept: np.ndarray | None = None
) -> str:
    """Of pairs of arms, paired over the prompts that are kept, `(P,)`: mean ± standard error, and whether it is resolved."""
    chances = chosen(pool, n)
    lines = [[f"n = {n}", *(f"{name} ({_count(pool.columns[name], kept)})" for name in names)]]
    for one, other in pairs:
        cells = (_less(pool, chances[one], chances[other], pool.columns[name], kept) for name in names)
        lines.append([f"{one} − {other}", *cells])
    return markdown(lines)


def _less(pool: Pool, ours: np.ndarray, theirs: np.ndarray, column: np.ndarray, kept: np.ndarray | None) -> str:
    """Errors are between the pool's groups, as prompts of one task go together."""
    values, others = per_prompt(ours, column), per_prompt(theirs, column)
    known = _applies(column, kept)
    groups = np.array(pool.groups or range(len(values)))[known].tolist()
    return paired_difference(values[known].tolist(), others[known].tolist(), groups) if known.any() else "–"


def _applies(column: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    return ~np.isnan(column).any(1) & (True if kept is None else kept)


def _count(column: np.ndarray, kept: np.ndarray | None) -> str:
    return f"{_applies(column, kept).sum()} prompts"


def win_rates(pool: Pool, scores: np.ndarray, n: int) -> str:
    """Against a random choice by a judge's scores, in percent: raw, and where neither answer is longer."""
    chances, lengths, groups = chosen(pool, n), pool.factors["tokens"], pool.groups or list(range(len(scores)))
    lines = [[f"n = {n}", "wins, %", "wins at equal length, %"]]
    for arm, own in chances.items():
        wins, losses, apart = compared(own, chances[CHANCE], scores, lengths)
        raw = wins.sum(1) / (wins + losses).sum(1)
        level, error = with_error(wins, losses, apart, groups)
        lines.append(
            [
                arm,
                f"{100 * raw.mean():.1f} ± {100 * standard_error(raw.tolist(), groups):.1f}",
                f"{100 * level:.1f} ± {100 * error:.1f}",
            ]
        )
    return markdown(lines)


def with_error(wins: np.ndarray, losses: np.ndarray, apart: np.ndarray, groups: list) -> tuple[float, float]:
    """The win rate at equal length, and its standard error by drawing groups of prompts anew with replacement."""
    rng, drawn = np.random.default_rng(0), []
    members = [np.flatnonzero(np.array(groups) == group) for group in dict.fromkeys(groups)]
    for _ in range(RESAMPLINGS):
        prompts = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
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
