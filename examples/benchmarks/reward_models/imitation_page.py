"""The tables of `imitation`: what each coefficient reaches, and its differences from the first, with errors over seeds and prompts."""

from collections.abc import Sequence
from itertools import product
from statistics import stdev

import numpy as np

from examples.benchmarks.common.over_seeds import mean_and_deviation, paired_difference, standard_error
from trl_ext import evaluate_reward
from trl_ext.trainer_kit.resampling import errors_to_see

Cell = tuple[int, int, float]  # seed, pairs, coefficient


def page(asked: dict[str, list[dict]], found: dict[Cell, dict]) -> str:
    """Markdown: one row for each number of pairs and coefficient, the differences, and the primary set by source."""
    seeds, counts, coefficients = (list(dict.fromkeys(cell[i] for cell in found)) for i in range(3))
    primary = next(iter(asked))
    beside = {cell: measured(asked[primary], run, primary) for cell, run in found.items()}
    names = next(iter(beside.values()))
    lines = [f"{len(seeds)} seeds; {', '.join(f'{len(rows)} pairs of {name}' for name, rows in asked.items())}", ""]
    lines += heading(["pairs", "coefficient", *asked, *names])
    for count, coefficient in product(counts, coefficients):
        cells = [(seed, count, coefficient) for seed in seeds]
        values = [right_of([found[cell] for cell in cells], name).mean(1).tolist() for name in asked]
        values += [[beside[cell][name] for cell in cells] for name in names]
        lines += [line([str(count), f"{coefficient:g}", *(mean_and_deviation(each, digits=3) for each in values)])]
    lines += [
        "",
        f"Less that of coefficient {coefficients[0]:g}; ± of accuracies over seeds and prompts, of others over seeds:",
        "",
    ]
    lines += heading(["pairs", "coefficient", *asked, *names])
    for count, coefficient in product(counts, coefficients[1:]):
        arms = [[(seed, count, each) for seed in seeds] for each in (coefficient, coefficients[0])]
        cells = [
            difference(*(right_of([found[cell] for cell in arm], name) for arm in arms), rows)
            for name, rows in asked.items()
        ]
        cells += [paired_difference(*([beside[cell][name] for cell in arm] for arm in arms)) for name in names]
        lines += [line([str(count), f"{coefficient:g}", *cells])]
    return "\n".join([*lines, "", *by_source(asked[primary], primary, found, seeds, counts, coefficients)]) + "\n"


def measured(rows: list[dict], run: dict, primary: str) -> dict[str, float]:
    """What stands beside accuracy, of one model."""
    summary = evaluated_of(rows, run["scores"][primary]).summary
    found = {f"{shown}, {primary}": summary[name] for shown, name in (("log-loss", "log_loss"), ("ECE", "ece"))}
    return found | {"nats per chosen token": run["chosen_nll"], "CPU seconds": run["seconds"]}


def evaluated_of(rows: list[dict], scores: Sequence[Sequence[float]]):
    """`evaluate_reward` of scores that are there."""
    known = {
        (row["prompt"], row[side]): score
        for row, both in zip(rows, scores, strict=True)
        for side, score in zip(("chosen", "rejected"), both, strict=True)
    }

    def reward(prompts, completions, **columns):
        return [known[pair] for pair in zip(prompts, completions, strict=True)]

    return evaluate_reward(reward, [dict(row) for row in rows], by="source")


def right_of(runs: list[dict], name: str) -> np.ndarray:
    """Whether each pair is ranked as its label has it, `(seeds, pairs)`; equal scores are half right."""
    gaps = np.array([run["scores"][name] for run in runs]) @ [1.0, -1.0]
    return (gaps > 0) + 0.5 * (gaps == 0)


def difference(ones: np.ndarray, others: np.ndarray, rows: list[dict]) -> str:
    """Mean of the one less the other, ± its error, and whether it is resolved; `(seeds, pairs)` each."""
    apart = ones - others
    if not apart.any():
        return "the same"
    error, freedom = crossed_error(apart, [row["prompt"] for row in rows])
    seen = errors_to_see(freedom) * error
    verdict = "resolved" if abs(apart.mean()) > seen else f"not resolved, below {seen:.3f}"
    return f"{apart.mean():+.3f} ± {error:.3f} ({verdict})"


def crossed_error(values: np.ndarray, prompts: list[str]) -> tuple[float, float]:
    """Standard error of the mean over seeds and pairs, both of them drawn, and its degrees of freedom.

        √(a² + b²)          a over the seeds' means, b over the pairs' means, those of one prompt together

    What varies for each seed and pair alone is in both, so it is never too small. Freedom as Welch and Satterthwaite have it.
    """
    seeds, pairs = values.mean(1).tolist(), values.mean(0).tolist()
    if len(seeds) < 2:
        return float("nan"), 0
    a, b = stdev(seeds) / len(seeds) ** 0.5, standard_error(pairs, prompts)
    if not (a or b):
        return 0.0, len(seeds) - 1
    return (a**2 + b**2) ** 0.5, (a**2 + b**2) ** 2 / (a**4 / (len(seeds) - 1) + b**4 / (len(set(prompts)) - 1))


def by_source(
    rows: list[dict],
    name: str,
    found: dict[Cell, dict],
    seeds: list[int],
    counts: list[int],
    coefficients: list[float],
) -> list[str]:
    """Accuracy on each source, mean over seeds, of the largest number of pairs, beside length alone."""
    right = {each: right_of([found[seed, counts[-1], each] for seed in seeds], name) for each in coefficients}
    groups = evaluated_of(rows, found[seeds[0], counts[-1], coefficients[0]]["scores"][name]).groups
    lines = [f"{name} by source, {counts[-1]} pairs:", ""]
    lines += heading(
        ["source", "rows", "length only", *(f"{each:g}" for each in coefficients), "difference of the last"]
    )
    for source in sorted({row["source"] for row in rows}):
        own = [i for i, row in enumerate(rows) if row["source"] == source]
        cells = [mean_and_deviation(each[:, own].mean(1).tolist(), digits=3) for each in right.values()]
        apart = difference(
            *(right[each][:, own] for each in (coefficients[-1], coefficients[0])), [rows[i] for i in own]
        )
        lines += [line([source, str(len(own)), f"{groups[f'source {source}']['length_only']:.3f}", *cells, apart])]
    return lines


def heading(names: list[str]) -> list[str]:
    return [line(names), "|" + "---|" * len(names)]


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
