"""Best of n on real text: how many closed questions does the best answer by a proxy get right, as n grows to 64?

    python -m examples.benchmarks.reward_models.best_of_n_real --pool POOL/samples.parquet POOL/more.parquet \\
        --prompts POOL/prompts.jsonl --encoder all-MiniLM-L6-v2 --judge JUDGE --output-dir OUT

POOLs are what `rerank_start` and `trl-ext generate` made (../r3), of other seeds: 32 completions each of at most 64 tokens to each of 40
closed tasks that SFT has not seen, together 64. Each is scored once by every proxy: R³'s open route r_x·LI·RP, without
relevance LI·RP, relevance alone r_x, and each --judge, a reward model. None reads the reference answer, with which gold
compares: exact match.

Primary endpoint, named before the run: exact match of the best of all samples by R³'s open route, less that of a random one; mean over
prompts ± standard error between kinds of task, resolved as `paired_difference` says. Gao's form is fitted to gold in deviations
over all samples, its intervals are over prompts.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from examples.benchmarks.common.over_seeds import paired_difference
from examples.benchmarks.common.quiet_runs import quiet
from examples.benchmarks.r3.rerank_arms import arm_scores
from examples.benchmarks.r3.rerank_columns import factors
from examples.benchmarks.r3.rerank_statistics import exact_match
from examples.benchmarks.r3.rerank_table import markdown
from trl_ext import LearnedReward, RelevanceReward, score
from trl_ext.reward_evaluation import BestOfNCurve, best_of_n_curve, draw_curves
from trl_ext.trainer_kit.row_files import json_rows

OPEN, PLAIN, RELEVANCE = "R³'s open route, r_x·LI·RP", "LI·RP", "r_x"
PROXIES = {OPEN: "open", PLAIN: "LI·RP", RELEVANCE: "r_x"}  # as `arm_scores` names them


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pool", type=Path, nargs="+", required=True, help="parquet files of samples of the same prompts")
    add("--prompts", type=Path, required=True)
    add("--encoder", required=True)
    add("--judge", type=Path, nargs="*", default=[], help="folders of reward models")
    add("--output-dir", type=Path, required=True)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    quiet()
    rows = read_pools(options.pool, [row for row in json_rows(options.prompts) if row["task"]])
    right = np.array([[exact_match(c, row["reference"], row["task"]) for c in row["completions"]] for row in rows])
    scores = arm_scores(factors(rows, RelevanceReward(options.encoder, similarity="cosine", device="cpu")))
    proxies = {name: scores[key] for name, key in PROXIES.items()}
    proxies |= {f"judge {folder.name}": judged(folder, rows) for folder in options.judge}
    texts, names = [row["completions"] for row in rows], [row["prompt"] for row in rows]
    curves = {name: best_of_n_curve(each, right, prompts=names, texts=texts) for name, each in proxies.items()}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    kept = {name: curve.as_dict() for name, curve in curves.items()}
    (options.output_dir / "curves.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    draw_curves(options.output_dir / "curves.png", curves)
    print(page(curves, [row["task"] for row in rows]))


def read_pools(paths: list[Path], prompts: list[dict]) -> list[dict]:
    """The prompts with `completions` and `completion_ids` of all files; those that no file has are left out."""
    found = {row["prompt"]: row | {"completions": [], "completion_ids": []} for row in prompts}
    for path in paths:
        for sample in pq.read_table(path, columns=["prompt", "completion", "completion_ids"]).to_pylist():
            if sample["prompt"] in found:
                found[sample["prompt"]]["completions"].append(sample["completion"])
                found[sample["prompt"]]["completion_ids"].append(sample["completion_ids"])
    rows = [row for row in found.values() if row["completions"]]
    counts = sorted({len(row["completions"]) for row in rows})
    if len(counts) != 1:
        raise SystemExit(
            f"--pool: expected as many samples of each closed task, got {counts}. Give files of the same prompts."
        )
    return rows


def judged(folder: Path, rows: list[dict]) -> np.ndarray:
    """The reward model's score of each sample, `(P, N)`; equal ones are read once."""
    pairs = [(row["prompt"], text) for row in rows for text in row["completions"]]
    different, reward = list(dict.fromkeys(pairs)), LearnedReward(str(folder))
    values = score(reward, [prompt for prompt, _ in different], [text for _, text in different])[reward.__name__]
    known = dict(zip(different, values, strict=True))
    return np.array([known[pair] for pair in pairs]).reshape(len(rows), -1)


def page(curves: dict[str, BestOfNCurve], groups: list[str]) -> str:
    """Exact match by n, whether the gain at the largest n is resolved, Gao's fit, and how far samples repeat."""
    first = next(iter(curves.values()))
    sizes = first.sizes
    table = [["exact match of the best of n", *(f"{n}" for n in sizes)]]
    table += [[name, *(f"{value:.3f}" for value in exact_matches(curve).mean(0))] for name, curve in curves.items()]
    lines = [markdown(table)]
    for name, curve in curves.items():
        by_prompt = exact_matches(curve)
        gain = paired_difference(by_prompt[:, -1].tolist(), by_prompt[:, 0].tolist(), groups)
        lines += [f"{name}: exact match at n = {sizes[-1]} less that of a random one: {gain}", f"{name}: {curve.fit}"]
    ties = ", ".join(f"{name} {100 * curve.tied:.0f} %" for name, curve in curves.items())
    return "\n\n".join(
        [*lines, f"{len(groups)} prompts; repeated: {100 * first.repeated:.1f} %; tied by proxy: {ties}"]
    )


def exact_matches(curve: BestOfNCurve) -> np.ndarray:
    """Gold before it was centred, `(P, K)`."""
    mean, deviation = curve.gold_centre
    return mean + deviation * curve.gold_by_prompt


if __name__ == "__main__":
    main()
