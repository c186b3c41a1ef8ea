"""How often query types are right: the shipped classifier beside rules, TF-IDF with scikit-learn, and a language model.

    python -m examples.benchmarks.r3.query_types --data FOLDER
    python -m examples.benchmarks.r3.query_types --data FOLDER --model MODEL --rows 40

Primary endpoint: accuracy of the shipped classifier, on all rows of `r3_labels`, less that of TF-IDF with logistic regression
(scikit-learn's defaults but for C = 10 and pairs of words) that was fitted on the same rows, paired over queries. Intervals are 95 %,
of 2000 resamples of the queries. No row of these files, and none nearly equal to one, is trained on; the second line of each
source also leaves out those that come from where its own rows come from.
"""

import argparse
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline

from examples.query_types.train_classifier import Row, held_out, shipped_rows, trained
from trl_ext.query_types import LanguageModelLabeler, QueryTypeClassifier
from trl_ext.reward_evaluation import pair_statistics
from trl_ext.trainer_kit.row_files import json_rows

SOURCES = {  # and the sources of training rows that theirs are from
    "r3_labels": {"self_instruct_user252", "vicuna_bench"},
    "human_categories": {"self_instruct_seed", "mt_bench", "vicuna_bench"},
    "autoj_mapped": set(),
}
ASKING = re.compile(
    r"(who|whom|whose|what|when|where|which|how|why|is|are|was|were|do|does|did|can|could|will)\b", re.I
)
FEW = (  # shown to the language model; written for it
    ("Write a lullaby about a snail.", "open"),
    ("What is the boiling point of water?", "closed"),
    ("How can I make new friends at work?", "open"),
    ("Correct the sentence.\nHe go home.", "closed"),
)
RESAMPLES = 2000
Predict = Callable[[list[str]], np.ndarray]  # p(open) of each query


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """A mean, and its bootstrap interval."""
    random = np.random.default_rng(0)
    means = values[random.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    return float(values.mean()), *map(float, np.quantile(means, [0.025, 0.975]))


def shown(values: np.ndarray, sign: str = "") -> str:
    mean, low, high = interval(values.astype(float))
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def calibration_error(p_open: np.ndarray, is_open: np.ndarray) -> float:
    """ECE of the likelier type, over ten bins of confidence."""
    sure, right = np.maximum(p_open, 1 - p_open), (p_open >= 0.5) == is_open
    sums = pair_statistics.calibration_sums(sure, right, np.ones(len(sure)))
    return float(pair_statistics.calibration_error(sums.sum(0)))


def tf_idf() -> Pipeline:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_pipeline(words, LogisticRegression(C=10.0, max_iter=2000))


def tf_idf_of(rows: list[Row]) -> Predict:
    model = tf_idf().fit([row.query for row in rows], [row.query_type == "open" for row in rows])
    return lambda queries: model.predict_proba(queries)[:, 1]


def stump(rows: list[Row], measure: Callable[[str], float]) -> Predict:
    """The cut and direction of one number that are best on the training rows, where both types count alike."""
    values = np.array([measure(row.query) for row in rows])
    is_open = np.array([row.query_type == "open" for row in rows])
    gaps = {cut: (values[is_open] > cut).mean() - (values[~is_open] > cut).mean() for cut in np.unique(values)}
    cut = max(gaps, key=lambda one: abs(gaps[one]))
    above_is_open = gaps[cut] > 0
    return lambda queries: np.array([(measure(query) > cut) == above_is_open for query in queries], float)


def n_words(query: str) -> int:
    return len(query.split())


def asks(query: str) -> int:
    return int(bool(ASKING.match(query.strip())) or query.rstrip().endswith("?"))


def of_classifier(classifier: QueryTypeClassifier) -> Predict:
    return lambda queries: np.array([classifier.p_open(query) for query in queries])


def methods_of(rows: list[Row]) -> dict[str, Predict]:
    common = np.mean([row.query_type == "open" for row in rows]) >= 0.5
    return {
        "commonest type in training": lambda queries: np.full(len(queries), float(common)),
        "length rule": stump(rows, n_words),
        "question-word rule": stump(rows, asks),
        "TF-IDF + LR (scikit-learn)": tf_idf_of(rows),
    }


def evaluation_rows(data: Path, source: str) -> tuple[list[str], np.ndarray]:
    rows = list(json_rows(data / f"qtype/{source}.jsonl"))
    return [row["query"] for row in rows], np.array([row["label"] == "OPEN" for row in rows])


def confusion(p_open: np.ndarray, is_open: np.ndarray) -> str:
    said = p_open >= 0.5
    cells = [(said & is_open), (~said & is_open), (said & ~is_open), (~said & ~is_open)]
    return " / ".join(str(int(cell.sum())) for cell in cells)


def print_source(name: str, data: Path, rows: list[Row], classifier: QueryTypeClassifier) -> None:
    queries, is_open = evaluation_rows(data, name)
    rest = [row for row in rows if row.source not in SOURCES[name]]
    methods = methods_of(rows) | {"shipped classifier": of_classifier(classifier)}
    if len(rest) < len(rows):
        methods["classifier without its sources"] = of_classifier(trained(rest))
    found = {method: predict(queries) for method, predict in methods.items()}
    found["TF-IDF + LR, 5-fold on these labels"] = cross_val_predict(
        tf_idf(), np.array(queries), is_open, cv=5, method="predict_proba"
    )[:, 1]
    print(f"\n{name}: {len(queries)} queries, {is_open.mean():.2f} open\n")
    print("| method | accuracy | ECE | open as open / as closed / closed as open / as closed |\n|---|---|---|---|")
    for method, p_open in found.items():
        right = (p_open >= 0.5) == is_open
        print(
            f"| {method} | {shown(right)} | {calibration_error(p_open, is_open):.3f} | {confusion(p_open, is_open)} |"
        )
    right = {method: ((p_open >= 0.5) == is_open).astype(float) for method, p_open in found.items()}
    for method in ("TF-IDF + LR (scikit-learn)", "length rule", "question-word rule"):
        print(f"shipped classifier less {method}: {shown(right['shipped classifier'] - right[method], '+')}")


def print_coverage(data: Path, classifier: QueryTypeClassifier) -> None:
    print("\n| threshold | " + " | ".join(f"{name}: labelled, right" for name in SOURCES) + " |\n|---|---|---|---|")
    labels = {}
    for name in SOURCES:
        queries, is_open = evaluation_rows(data, name)
        given = [label for _, label in classifier.label(queries)]
        right = [label.query_type == ("open" if one else "closed") for label, one in zip(given, is_open, strict=True)]
        labels[name] = np.array([label.confidence or 0.0 for label in given]), np.array(right)
    for least in (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95):
        cells = [f"{(sure >= least).mean():.2f}, {shown(right[sure >= least])}" for sure, right in labels.values()]
        print(f"| {least:.2f} | " + " | ".join(cells) + " |")


def print_training_sources(rows: list[Row]) -> None:
    """Each source by what was trained on the others."""
    logits, _ = held_out(rows)
    is_open = np.array([row.query_type == "open" for row in rows])
    sources = np.array([row.source for row in rows])
    print("\n| source left out | open, closed | classifier | TF-IDF + LR | length rule | question-word rule |")
    print("|---|---|---|---|---|---|")
    for source in sorted(set(sources)):
        own = sources == source
        methods = methods_of([row for row in rows if row.source != source])
        queries = [row.query for row in rows if row.source == source]
        names = ("TF-IDF + LR (scikit-learn)", "length rule", "question-word rule")
        cells = [shown((methods[name](queries) >= 0.5) == is_open[own]) for name in names]
        size = f"{is_open[own].sum()}, {(~is_open[own]).sum()}"
        print(f"| {source} | {size} | {shown((logits[own] >= 0) == is_open[own])} | {' | '.join(cells)} |")


def print_model(path: str, data: Path, classifier: QueryTypeClassifier, count: int) -> None:
    """Of each source the first `count` rows by a fixed shuffle, by all three."""
    plain = LanguageModelLabeler(path)
    few = LanguageModelLabeler(plain.model, plain.tokenizer, examples=FEW)
    print(
        f"\nlanguage model, {count} queries of each\n\n| source | method | accuracy | said open | CPU per query |\n|---|---|---|---|---|"
    )
    for name in SOURCES:
        queries, is_open = evaluation_rows(data, name)
        chosen = np.random.default_rng(0).permutation(len(queries))[:count]
        asked = [queries[i][:600] for i in chosen]
        for method, labeler in (("zero-shot", plain), ("few-shot", few), ("shipped classifier", None)):
            start = time.process_time()
            if labeler is None:
                said = of_classifier(classifier)(asked) >= 0.5
            else:
                said = np.array([label.query_type == "open" for _, label in labeler.label(asked)])
            took = (time.process_time() - start) / len(asked)
            print(
                f"| {name} | {method} | {shown(said == is_open[chosen])} | {said.mean():.2f} | {took:.4f} s |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with qtype, instr_misc and pref_qafeedback")
    parser.add_argument("--model", help="a causal LM to ask too")
    parser.add_argument("--rows", type=int, default=40, help="queries of each source that it is asked")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    classifier = QueryTypeClassifier.load()
    if args.model:
        print_model(args.model, args.data, classifier, args.rows)
        return
    rows = shipped_rows(args.data)
    for name in SOURCES:
        print_source(name, args.data, rows, classifier)
    print_coverage(args.data, classifier)
    print_training_sources(rows)


if __name__ == "__main__":
    main()
