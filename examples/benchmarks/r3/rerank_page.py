"""The page of `rerank`: its tables in order, and some prompts with what each arm would answer."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from examples.benchmarks.common.over_seeds import paired_difference
from examples.benchmarks.r3 import rerank_arms as arms
from examples.benchmarks.r3.rerank_judge import MUST_RANK, judged
from examples.benchmarks.r3.rerank_table import at_size, by_size, differences, markdown, win_rates

PAIRS = [
    (arms.R3, arms.PLAIN),
    (arms.R3, arms.OPEN),
    (arms.OPEN, arms.PLAIN),
    (arms.PLAIN, arms.RELEVANCE),
    (arms.PLAIN, arms.LONGEST),
    *((arm, arms.CHANCE) for arm in (arms.R3, arms.OPEN, arms.PLAIN, arms.RELEVANCE)),
]
EXAMPLES = 3
EXPLAINED = "log p(x given ŷ) − log p(x)"


def page(pool: arms.Pool, rows: list[dict], judge: Path | None = None) -> str:
    """All tables, as Markdown."""
    count = pool.factors["LI"].shape[1]
    shown = {name: column for name, column in pool.columns.items() if name != EXPLAINED}
    plain = replace(pool, types={"given": pool.types["given"]}, columns=shown)
    parts = [f"{len(rows)} prompts, {count} samples each; {sum(bool(row['task']) for row in rows)} of closed tasks."]
    parts += [by_size(plain, "exact match"), by_size(plain, "own prompt among 50 (BM25)"), at_size(plain, count)]
    parts += [differences(plain, names, count, PAIRS) for names in by_twos(list(shown))]
    parts += [by_kind(plain, count)]
    if EXPLAINED in pool.columns:
        parts.append(explained(replace(pool, types=plain.types), count))
    if "classifier" in pool.types:
        parts += by_classifier(replace(pool, columns=shown), count)
    parts += judge_tables(plain, rows, count, judge)
    return "\n\n".join([*parts, *examples(pool, rows, count)])


def by_twos(names: list[str]) -> list[list[str]]:
    """As many columns as a page is wide.

    >>> by_twos(["a", "b", "c"])
    [['a', 'b'], ['c']]
    """
    return [names[i : i + 2] for i in range(0, len(names), 2)]


def by_classifier(pool: arms.Pool, n: int) -> list[str]:
    """The classifier's types beside the given ones: of queries that it has not learned, and of all, which it has in part."""
    return [
        f"The classifier, on {name}: {agreement(pool.types, kept)}\n\n"
        + "\n\n".join(
            differences(pool, names, n, [(arms.BY_CLASSIFIER, arms.R3)], kept) for names in by_twos(measures)
        )
        for measures in [list(pool.columns)]
        for name, kept in (
            ("queries that it has not learned", pool.unlearned),
            ("all, of which it learned the others with their types", np.full(len(pool.unlearned), True)),
        )
    ]


def agreement(types: dict[str, list[str | None]], kept: np.ndarray) -> str:
    """How often the classifier says what is given.

    >>> agreement({"given": ["open", "open", "closed"], "classifier": ["open", None, "open"]}, np.array([True] * 3))
    '3 prompts; it says the given type of 1, the other of 1, none of 1.'
    """
    pairs = [
        pair for pair, own in zip(zip(types["given"], types["classifier"], strict=True), kept, strict=True) if own
    ]
    same, none = sum(a == b for a, b in pairs), sum(b is None for _, b in pairs)
    return f"{len(pairs)} prompts; it says the given type of {same}, the other of {len(pairs) - same - none}, none of {none}."


def by_kind(pool: arms.Pool, n: int) -> str:
    """The measures of open prompts alone, and of closed ones."""
    opened = arms.is_open(pool.types["given"]) == 1
    return "\n\n".join(
        f"{name} prompts ({int(kept.sum())}):\n\n" + at_size(pool, n, kept)
        for name, kept in (("Open", opened), ("Closed", ~opened))
    )


def explained(pool: arms.Pool, n: int) -> str:
    """log p(x | ŷ) − log p(x), beside the mean of two samples of each prompt, paired over the prompts that have it."""
    known = ~np.isnan(pool.columns[EXPLAINED]).all(1)
    values, random = pool.columns[EXPLAINED][known], pool.columns[EXPLAINED][known, :2].mean(1)
    groups = np.array(pool.groups or range(len(known)))[known].tolist()
    lines = [[f"{EXPLAINED}, nats, n = {n}, {known.sum()} prompts", "mean", "beside two at random"]]
    for arm, chances in arms.chosen(pool, n).items():
        if arm != arms.CHANCE:
            own = chances[known]
            ours = arms.per_prompt(own, np.where(own > 0, values, 0))
            lines.append([arm, f"{ours.mean():.2f}", paired_difference(ours.tolist(), random.tolist(), groups)])
    return markdown([*lines, ["two at random", f"{random.mean():.2f}", "0"]])


def judge_tables(pool: arms.Pool, rows: list[dict], n: int, judge: Path | None) -> list[str]:
    """How good the judge is, and the win rates by it if it is good enough."""
    if judge is None:
        return []
    accuracy = json.loads((judge / "accuracy.json").read_text())
    said = ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items())
    if accuracy["all"] < MUST_RANK:
        return [f"Judge: {said}. Below {MUST_RANK:.0%}, so its columns are dropped."]
    return [f"Judge: {said}.", win_rates(pool, judged(judge, rows), n)]


def examples(pool: arms.Pool, rows: list[dict], n: int) -> list[str]:
    """Of each kind of prompt the one of middle length, with each arm's likeliest choice."""
    chances, kinds = arms.chosen(pool, n), {}
    for p in sorted(range(len(rows)), key=lambda p: len(rows[p]["query"])):
        kinds.setdefault((bool(rows[p]["task"]), rows[p]["query_type"]), []).append(p)
    return [
        f"Prompt ({rows[p]['query_type']}): {_line(rows[p]['query'])}\n\n"
        + markdown(
            [
                ["", "answer"],
                ["reference", _line(rows[p]["reference"])],
                *([arm, _line(rows[p]["completions"][int(own[p].argmax())])] for arm, own in chances.items()),
            ]
        )
        for p in [kind[len(kind) // 2] for kind in kinds.values()][:EXAMPLES]
    ]


def _line(text: str, longest: int = 260) -> str:
    one = " / ".join(filter(None, map(str.strip, text.splitlines()))).replace("|", "\\|").replace("<", "&lt;")
    return one if len(one) <= longest else one[:longest] + " …"


def explained_arms(pool: arms.Pool) -> list[str]:
    """All but the random choice, which would need every sample."""
    return [arm for arm in arms.chosen(pool, 1) if arm != arms.CHANCE]
