"""What is each factor of R³ worth, before anything is trained? One pool of samples, re-ranked by each.

    python -m examples.benchmarks.r3.rerank --pool POOL/samples.parquet --prompts POOL/prompts.jsonl \\
        --encoder all-MiniLM-L6-v2 --base gemma-3-270m --output-dir OUT

POOL is what `rerank_start` and `trl-ext generate` made: 32 completions of at most 64 tokens to each of 100 prompts
that SFT has not seen. Every factor scores each completion once; every arm re-ranks the same completions, so that arms
differ in what they choose and in nothing else: no training, no noise of it. What the best of n is worth is its exact
expectation over all subsets of n (`chances_to_be_best`), at a KL of log n − (n − 1)/n for all arms.

Primary endpoint, named before the run: exact match on the closed tasks at the largest n, R³ with given types against
LI·RP. Note that R³'s closed route reads the reference answer, which exact match compares with: as in training, where
the reward may, but nobody may at inference. It says what R³ would teach; whether a policy learns it is for training.
The other arms do not read it, nor does any other column. Within a prompt F's constant orders nothing anew, so none has
to be measured here.

Relevance is not measured by the encoder that pays, but by BM25 (does the answer find its own prompt among 50?) and, at
the largest n, by log p(x | ŷ) − log p(x) under the frozen base. --judge adds win rates by a reward model that
`rerank_judge` trained, unless that judge is right in less than 60 % of held-out pairs. --types gives a file with the
classifier's types, which --label writes by `label_query_types`; they are compared on prompts whose queries the shipped
classifier has not learned, for which --data tells those that it has. Errors are between kinds of task, and other prompts.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from examples.benchmarks.common.quiet_runs import quiet
from examples.benchmarks.r3 import rerank_arms as arms
from examples.benchmarks.r3.rerank_columns import columns, explained_prompts, factors
from examples.benchmarks.r3.rerank_page import EXPLAINED, explained_arms, page
from examples.benchmarks.r3.word_overlap import check_library
from examples.query_types.train_classifier import query_hash, shipped_rows
from trl_ext.rewards.relevance import RelevanceReward
from trl_ext.trainer_kit.row_files import json_rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pool", type=Path, required=True, help="parquet file, or the folder of its parts while it is being made")
    add("--prompts", type=Path, required=True)
    add("--encoder", required=True)
    add("--base", help="frozen causal LM for log p(x | ŷ); without it that column is left out")
    add("--explained", type=int, default=60, help="prompts for that column, from the first on: passes are slow")
    add("--judge", type=Path, help="folder that rerank_judge wrote")
    add("--types", type=Path, help="JSON: a query type, or null, by a prompt's id; of the classifier")
    add("--label", action="store_true", help="ask the shipped classifier first, and write --types")
    add("--data", type=Path, help="folder of the data, of which the classifier learned some; with --types")
    add("--output-dir", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.label and not options.types:
        parser.error("--label: expected --types, the file that the types are written to. Give it.")
    if options.types and not options.data:
        parser.error("--types: expected --data too: queries that the classifier learned say little of it. Give it.")
    return options


def main() -> None:
    options = parse()
    quiet()
    check_library("rerank")
    rows = read_pool(options.pool, list(json_rows(options.prompts)))
    if options.label:
        options.types.write_text(json.dumps(classified(rows)))
    options.output_dir.mkdir(parents=True, exist_ok=True)
    pool = measured(rows, options)
    text = page(pool, rows, options.judge)
    (options.output_dir / "tables.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def read_pool(path: Path, prompts: list[dict]) -> list[dict]:
    """The prompts with their `completions`, `completion_ids` and `ended`; those whose part is not there are left out."""
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    if not files:
        raise SystemExit(f"--pool {path}: no samples are there. Make them as examples/benchmarks/r3/README.md says.")
    found: dict[int, list[dict]] = {}
    for file in files:
        for sample in pq.read_table(file, columns=["row", "completion", "completion_ids", "ended"]).to_pylist():
            found.setdefault(sample["row"], []).append(sample)
    return [prompts[row] | _columns(samples) for row, samples in sorted(found.items())]


def _columns(samples: list[dict]) -> dict:
    names = {"completions": "completion", "completion_ids": "completion_ids", "ended": "ended"}
    return {ours: [sample[theirs] for sample in samples] for ours, theirs in names.items()}


def classified(rows: list[dict]) -> dict[str, str | None]:
    """What the shipped classifier says of each query; None where it abstains."""
    try:
        from trl_ext.query_types import label_query_types
    except ImportError as error:
        raise SystemExit("--label: this version of trl_ext has no trl_ext.query_types. Leave it out.") from error
    from datasets import Dataset

    labelled = label_query_types(Dataset.from_dict({"prompt": [row["query"] for row in rows]}))
    return dict(zip([row["id"] for row in rows], labelled["query_type"], strict=True))


def learned(queries: list[str], data: Path) -> list[bool]:
    """Which of them the shipped classifier was trained on, word for word."""
    known = {query_hash(row.query) for row in shipped_rows(data)}
    return [query_hash(query) in known for query in queries]


def measured(rows: list[dict], options: argparse.Namespace) -> arms.Pool:
    encoder = RelevanceReward(options.encoder, similarity="cosine", device="cpu")
    types, unlearned = {"given": [row["query_type"] for row in rows]}, None
    if options.types:
        by_id = json.loads(options.types.read_text())
        types["classifier"] = [by_id[row["id"]] for row in rows]
        unlearned = np.array(learned([row["query"] for row in rows], options.data)) == 0
    groups = [row["task"] or row["id"] for row in rows]
    pool = arms.Pool(factors(rows, encoder), types, columns(rows), groups, unlearned)
    if options.base:
        needed = sum(arms.chosen(pool, pool.factors["LI"].shape[1])[arm] for arm in explained_arms(pool)) > 0
        needed |= np.arange(needed.shape[1]) < 2  # of a random choice, two samples stand for all
        needed &= (np.arange(len(rows)) < options.explained)[:, None]
        values = explained_prompts(rows, options.base, needed, options.output_dir / "explained.json")
        pool.columns[EXPLAINED] = values
    return pool


if __name__ == "__main__":
    main()
