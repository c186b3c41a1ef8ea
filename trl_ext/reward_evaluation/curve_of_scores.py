"""From the scores of N samples to the curve of the best of n. P prompts, K sizes n."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from trl_ext.reward_evaluation.best_curve import BestOfNCurve, Centre
from trl_ext.reward_evaluation.order_statistics import chances_to_be_best, curve_sizes
from trl_ext.rewards.ensemble_standard import has_deviation

ALIKE = 1e-6  # deviations that two rewards may be apart and still be one


def best_of_n_curve(
    proxy: Sequence[Sequence[float]] | np.ndarray,
    gold: Sequence[Sequence[float | None]] | np.ndarray | None = None,
    *,
    prompts: Sequence[Hashable] | None = None,
    texts: Sequence[Sequence[Hashable]] | None = None,
    sizes: Sequence[int] | None = None,
) -> BestOfNCurve:
    """The curve, from scores that one has.

    Unbiased: the expected value over all subsets of n of the N samples, equal proxies by lot.

    Args:
        proxy: By which the best is chosen, `(P, N)`.
        gold: What it is worth, `(P, N)`. A prompt to which it never applies (None) is left out.
        prompts: What tells prompts apart: equal ones count as one, in means, errors and resamples. None: all differ.
        texts: The completions, `(P, N)`, for the share that repeats.
        sizes: n. None: 1, 2, 4 … and N.
    """
    proxy, gold = _table(proxy, "proxy"), None if gold is None else _table(gold, "gold")
    sizes = _checked_sizes(sizes, proxy.shape[1])
    if np.isnan(proxy).any():
        row, sample = np.argwhere(np.isnan(proxy))[0].tolist()
        raise ValueError(
            f"best_of_n_curve(proxy=…): sample {sample} of prompt {row} has no score, so nobody knows whether it is the "
            "best. Leave the prompt out, or give a reward that applies to all."
        )
    if prompts is not None:
        _check_labels("prompts", [prompts], [len(proxy)])
    if texts is not None:
        _check_labels("texts", texts, [proxy.shape[1]] * len(proxy))
    applies = np.ones(len(proxy), dtype=bool) if gold is None else _applies(gold, proxy.shape)
    proxy, gold = proxy[applies], None if gold is None else gold[applies]
    centres = _centre(proxy, "proxy"), None if gold is None else _centre(gold, "gold")
    values = centres[0].applied(proxy), None if centres[1] is None else centres[1].applied(gold)
    if values[1] is not None and np.abs(values[0] - values[1]).max() < ALIKE:
        raise ValueError(
            "best_of_n_curve(gold=…): it scores every sample as the proxy does, but for offset and scale, and would show "
            "no over-optimisation whatever there is. Give another reward as gold, or none."
        )
    kept = [i for i, one in enumerate(applies) if one]
    groups = _numbered([i if prompts is None else prompts[i] for i in kept])
    chances = [chances_to_be_best(proxy, n) for n in sizes]
    by_prompt = [None if each is None else _grouped(_expected(chances, each), groups) for each in values]
    repeated = None if texts is None else _repeated([texts[i] for i in kept])
    return BestOfNCurve(sizes, *by_prompt, *centres, repeated, _repeated(proxy.tolist()), int((~applies).sum()))


def _checked_sizes(sizes: Sequence[int] | None, count: int) -> list[int]:
    if sizes is None:
        return curve_sizes(count)
    if not isinstance(sizes, Sequence | np.ndarray) or not all(isinstance(n, int | np.integer) for n in sizes):
        raise ValueError(
            f"best_of_n_curve(sizes={sizes!r:.60}): expected a list of whole numbers. Give e.g. [1, 4, 16]."
        )
    sizes = sorted({int(n) for n in sizes} | {1})
    if sizes[0] < 1 or sizes[-1] > count:
        bad = sizes[0] if sizes[0] < 1 else sizes[-1]
        raise ValueError(
            f"best_of_n_curve(sizes=…): expected n from 1 to {count}, as many as a prompt has samples, got {bad}. Leave it out, "
            "or sample more."
        )
    return sizes


def _check_labels(name: str, rows: Sequence[Sequence], counts: list[int]) -> None:
    """Raise a ValueError unless each row has so many labels, that can be told apart."""
    if [len(row) for row in rows] == counts and all(isinstance(label, Hashable) for row in rows for label in row):
        return
    raise ValueError(
        f"best_of_n_curve({name}=…): expected {' + '.join(map(str, counts[:3]))}{' …' * (len(counts) > 3)} texts, or others that "
        "can be told apart: as many as the proxy has. Give those; of messages their repr."
    )


def _table(scores: Any, name: str) -> np.ndarray:
    """Scores as numbers, NaN for None."""
    try:
        found = np.array(scores, dtype=float)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.ndim != 2 or not found.size or np.isinf(found).any():
        raise ValueError(
            f"best_of_n_curve({name}=…): expected finite numbers, as many for each prompt, got shape {found.shape}. Give a "
            "table of prompts by samples."
        )
    return found


def _applies(gold: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """To which prompts, `(P,)`."""
    if gold.shape != shape:
        raise ValueError(
            f"best_of_n_curve(gold=…): expected the proxy's shape, {shape}, got {gold.shape}. Give as many."
        )
    missing = np.isnan(gold)
    partly = missing.any(1) & ~missing.all(1)
    if partly.any() or missing.all():
        which = f"some samples of prompt {int(partly.argmax())}" if partly.any() else "all samples"
        raise ValueError(
            f"best_of_n_curve(gold=…): {which} have no score. Expected one for all samples of a prompt, or for none of them; "
            "give a gold that applies."
        )
    return ~missing.any(1)


def _centre(scores: np.ndarray, name: str) -> Centre:
    if not has_deviation(scores):
        raise ValueError(
            f"best_of_n_curve({name}=…): all samples have the score {scores.flat[0]:g}, which chooses nothing and has no "
            "deviation to be measured in. Give another reward, or more samples."
        )
    return Centre(float(scores.mean()), float(scores.std()))


def _expected(chances: list[np.ndarray], values: np.ndarray) -> np.ndarray:
    return np.stack([(chance * values).sum(1) for chance in chances], axis=1)


def _numbered(keys: Sequence[Hashable]) -> np.ndarray:
    """Of each key, the number of its first appearance among the different ones."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _grouped(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Means over rows of one group, `(groups, K)`."""
    sums = np.zeros((groups.max() + 1, values.shape[1]))
    np.add.at(sums, groups, values)
    return sums / np.bincount(groups)[:, None]


def _repeated(rows: Sequence[Sequence[Hashable]]) -> float:
    """Share of what is in the rows that has its like in its row.

    >>> _repeated([["a", "a", "b", "c"]])
    0.5
    """
    alike = sum(sum(count for count in Counter(row).values() if count > 1) for row in rows)
    return alike / sum(map(len, rows))
