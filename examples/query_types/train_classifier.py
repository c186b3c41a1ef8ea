"""Trains the classifier of `label_query_types`: on one's own labels, or as the shipped weights were.

    python -m examples.query_types.train_classifier --labels mine.jsonl --output mine.safetensors
    python -m examples.query_types.train_classifier --data FOLDER --output trl_ext/query_types/query_types.safetensors

`--labels` is a .jsonl, .json, .csv or .parquet file with the columns `query` and `query_type` ('open' or 'closed'), and
`source` where the queries come from several. `--data` holds `instr_misc` and `pref_qafeedback`, whose queries `labels.csv`
labels by their hashes, and `qtype`, whose queries, and those nearly equal to them, are left out, since they are for evaluation.
"""

import argparse
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from trl_ext.query_types.query_features import BUCKETS, counts, letter_words, scripts, word_number
from trl_ext.query_types.query_type_classifier import QueryTypeClassifier
from trl_ext.sequences.query_type_column import TYPES
from trl_ext.trainer_kit.commands import ends_in_one_line
from trl_ext.trainer_kit.row_files import READERS, UNREADABLE, json_rows, read_rows

HERE = Path(__file__).parent
STRENGTH = 10.0  # C of the logistic regression: Σ losses + ‖w‖² / 2C
PER_TASK = 4  # queries of each of instruction-induction's tasks, which are alike
NEAR = 0.8  # share of common words from which two queries are nearly equal
RIGHT = 0.9  # share of labels that should be right: the threshold is the lowest at which they are, by cross-validation
FEWEST = 2  # known words without which there is no type
FOLDS = 5  # where all queries are of one source


class Row(NamedTuple):
    query: str
    query_type: str
    source: str


def query_hash(query: str) -> str:
    """Of its words, so that white space, case and marks make no other query."""
    return hashlib.sha256(" ".join(re.findall(r"\w+", query.lower())).encode()).hexdigest()[:16]


def own_rows(path: Path) -> list[Row]:
    """A user's file; a ValueError for the first row that is not labelled with one of the two types."""
    table = _table(path)
    if not {"query", "query_type"} <= set(table.column_names):
        raise ValueError(
            f"{path} has the columns {table.column_names}: expected `query` and `query_type`. Rename yours."
        )
    for number, row in enumerate(table):
        if row["query_type"] not in TYPES or not isinstance(row["query"], str) or not row["query"].strip():
            raise ValueError(
                f"{path}, row {number}: expected a query and its type, one of {list(TYPES)}, got {row['query']!r} and "
                f"{row['query_type']!r}. Mend that row, or leave it out."
            )
    return [Row(row["query"], row["query_type"], row.get("source") or "") for row in table]


def _table(path: Path) -> Dataset:
    if path.suffix not in READERS or not path.is_file():
        raise ValueError(
            f"--labels {path}: expected a file that ends in {', '.join(READERS)}, and there is none. Give one."
        )
    try:
        return read_rows(path, text=("query", "query_type", "source"))
    except UNREADABLE as error:
        raise ValueError(f"--labels {path}: it cannot be read ({str(error).splitlines()[0]}). Mend it.") from error


def shipped_rows(data: Path) -> list[Row]:
    """The rows that the shipped weights were made of: those of `labels.csv`, `own.csv`, and some of instruction-induction."""
    texts = {query_hash(row["query"]): row["query"] for row in _queries(data)}
    labelled = [row for row in read_rows(HERE / "labels.csv") if row["query_hash"] in texts]
    rows = [Row(texts[row["query_hash"]], row["query_type"], row["source"]) for row in labelled]
    rows += own_rows(HERE / "own.csv")
    tasks = defaultdict(list)
    for row in json_rows(data / "instr_misc/closed_tasks.jsonl"):
        tasks[row["task"]].append(row["query"])
    for queries in tasks.values():
        chosen = sorted(queries, key=query_hash)[:PER_TASK]
        rows += [Row(query, "closed", "instruction_induction") for query in chosen]
    return without(rows, [row["query"] for path in (data / "qtype").glob("*.jsonl") for row in json_rows(path)])


def _queries(data: Path) -> Iterator[dict]:
    yield from json_rows(data / "instr_misc/instructions.jsonl")
    yield from json_rows(data / "pref_qafeedback/questions.jsonl")


def without(rows: list[Row], queries: Iterable[str]) -> list[Row]:
    """The rows whose queries are not among some others, nor nearly equal to one."""
    held_out = [frozenset(re.findall(r"\w+", query.lower())) for query in queries]

    def is_near(query: str) -> bool:
        own = frozenset(re.findall(r"\w+", query.lower()))
        return any(len(own & other) >= NEAR * len(own | other) for other in held_out)

    return [row for row in rows if not is_near(row.query)]


def fitted(rows: list[Row]) -> QueryTypeClassifier:
    """Logistic regression on tf-idf, not calibrated."""
    found = [counts(row.query) for row in rows]
    hits = np.bincount([place for each in found for place in each], minlength=BUCKETS)
    idf = np.where(hits > 0, np.log((1 + len(rows)) / (1 + hits)) + 1, 0.0)
    features = _matrix(found, idf)
    targets = torch.tensor([row.query_type == "open" for row in rows], dtype=torch.float64)
    weights = torch.zeros(BUCKETS + 1, dtype=torch.float64, requires_grad=True)  # and the bias
    optimizer = torch.optim.LBFGS([weights], max_iter=300, line_search_fn="strong_wolfe", tolerance_change=1e-9)

    def closure():
        optimizer.zero_grad()
        logits = torch.sparse.mm(features, weights[:-1, None])[:, 0] + weights[-1]
        loss = binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        loss = loss + weights[:-1].square().sum() / (2 * STRENGTH)
        loss.backward()
        return loss

    optimizer.step(closure)
    table = weights.detach().numpy()
    numbers = sorted({word_number(word) for row in rows for word in letter_words(row.query)})
    return QueryTypeClassifier(table[:-1], idf, np.array(numbers, np.uint32), bias=float(table[-1]))


def _matrix(found: list[dict[int, float]], idf: np.ndarray) -> torch.Tensor:
    """Rows x_j / ‖x‖, sparse, `(N, BUCKETS)`."""
    places = torch.tensor([(i, place) for i, each in enumerate(found) for place in each]).T
    values = torch.tensor([value * idf[place] for each in found for place, value in each.items()], dtype=torch.float64)
    norms = torch.zeros(len(found), dtype=torch.float64).index_add(0, places[0], values.square()).sqrt()
    size = (len(found), BUCKETS)
    return torch.sparse_coo_tensor(places, values / norms[places[0]], size, check_invariants=True).coalesce()


def held_out(rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Of each row its logit, and the share of its words that is known, by a classifier that did not see its source."""
    groups = {row.source for row in rows}
    group = [row.source if len(groups) > 1 else str(int(query_hash(row.query), 16) % FOLDS) for row in rows]
    logits, known = np.zeros(len(rows)), np.zeros(len(rows))
    for one in sorted(set(group)):
        seen = fitted([row for row, own in zip(rows, group, strict=True) if own != one])
        for i in (i for i, own in enumerate(group) if own == one):
            p = min(max(seen.p_open(rows[i].query), 1e-9), 1 - 1e-9)
            logits[i], known[i] = np.log(p / (1 - p)), seen.known_share(rows[i].query)
    return logits, known


def calibration(logits: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """a > 0 and b of p(open) = σ(a · logit + b), by maximum likelihood (Platt)."""
    x, y = torch.tensor(logits), torch.tensor(targets, dtype=torch.float64)
    raw = torch.tensor([0.5413, 0.0], dtype=torch.float64, requires_grad=True)  # softplus(0.5413) = 1
    optimizer = torch.optim.LBFGS([raw], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(softplus(raw[0]) * x + raw[1], y)
        loss.backward()
        return loss

    optimizer.step(closure)
    slope, shift = raw.detach()
    return float(softplus(slope)), float(shift)


def threshold(p_open: np.ndarray, targets: np.ndarray) -> float:
    """The lowest confidence above which enough labels are right."""
    sure, right = np.maximum(p_open, 1 - p_open), (p_open >= 0.5) == targets
    return next((float(t) for t in np.arange(0.5, 0.95, 0.05).round(2) if right[sure >= t].mean() >= RIGHT), 0.95)


def trained(rows: list[Row]) -> QueryTypeClassifier:
    """The classifier of some rows, calibrated, with its threshold, on what other sources said of each."""
    if len(kinds := {row.query_type for row in rows}) < 2:
        raise ValueError(
            f"expected queries of both types, got {len(rows)}, all {sorted(kinds)}. Label some of the other."
        )
    logits, known = held_out(rows)
    targets = np.array([row.query_type == "open" for row in rows])
    slope, shift = calibration(logits, targets)
    letters = sum((scripts(row.query) for row in rows), Counter())
    plain = fitted(rows)
    return QueryTypeClassifier(
        weights=plain.weights * slope,
        idf=plain.idf,
        vocabulary=plain.vocabulary,
        bias=plain.bias * slope + shift,
        scripts=tuple(script for script, count in letters.items() if count > 0.02 * letters.total()),
        known=float(np.quantile(known, 0.01).round(2)),
        fewest=FEWEST,
        threshold=threshold(1 / (1 + np.exp(-slope * logits - shift)), targets),
    )


def one_sided(rows: list[Row]) -> set[str]:
    """The sources, where there are several, whose queries are all of one type."""
    kinds = Counter(source for source, _ in {(row.source, row.query_type) for row in rows})
    return {source for source, count in kinds.items() if count == 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = parser.add_mutually_exclusive_group(required=True)
    rows.add_argument("--labels", type=Path, help="one's own labelled queries")
    rows.add_argument("--data", type=Path, help="the folder of which the shipped weights are made")
    parser.add_argument("--output", type=Path, required=True, help="the file of weights, *.safetensors")
    args = parser.parse_args()
    if args.output.suffix != ".safetensors":
        raise ValueError(
            f"--output {args.output}: expected a name that ends in .safetensors, by which label_query_types knows it. "
            f"Give {args.output.with_suffix('.safetensors')}."
        )
    found = own_rows(args.labels) if args.labels else shipped_rows(args.data)
    for (source, kind), count in sorted(Counter((row.source, row.query_type) for row in found).items()):
        print(f"{source or 'queries':24}{kind:8}{count:6}")
    for source in sorted(one_sided(found)):
        print(
            f"{source}: all its labels are one, so that the classifier learns the source. Add queries of the other type."
        )
    classifier = trained(found)
    classifier.save(args.output)
    print(f"{args.output}: threshold={classifier.threshold}, known={classifier.known}, scripts={classifier.scripts}")


if __name__ == "__main__":
    stopped = "Nothing is written before its end; give the same command again."
    with ends_in_one_line("train_classifier.py", when_stopped=stopped, folder=HERE):
        main()
