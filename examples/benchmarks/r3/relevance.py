"""Which encoders, reward models and reward functions tell a relevant answer from an irrelevant one?

    pip install bm25s
    python -m examples.benchmarks.r3.relevance --encoder ENCODER [ENCODER …] --data TRIPLETS.jsonl [FILE …] \\
        [--reward RM rewards.py:NAME …] [--rows 100] [--output results.json]

Rows have `query`, `relevant`, and `irrelevant_easy` (the answer of a random other query), `irrelevant_hard` (of one of the
same kind) or both; where `short` has the same three, they are a set of their own. Printed is the share of rows whose
relevant answer scores higher, equal scores counting half, with its 95 % interval (Wilson), for

    an encoder        M(q)·M(a), by dot product and by cosine; a causal model's folder gives means of its hidden states
    a reward          a reward model's path, or a function as FILE.py:NAME, of a completion of the query as prompt
    BM25              of the query among the file's own answers: word overlap, rare words counting more
    length            the longer answer is taken for the relevant one

and then, of each but the first, its share less the first one's, paired over the rows, ± standard error, in bold where it is
resolved: two intervals that overlap say little of the same rows.

The primary endpoint is the hard half of the first file, by dot product, against chance: with 100 rows an accuracy within
0.10 of ½ is not resolved. The paper's table (530 PopQA triplets): Contriever 100; four reward models 45 to 60.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean

import torch

from examples.benchmarks.common.over_seeds import paired_difference
from examples.benchmarks.common.quiet_runs import quiet
from examples.benchmarks.r3.rerank_table import markdown
from examples.benchmarks.r3.word_overlap import BM25, check_library
from trl_ext import RelevanceReward
from trl_ext.cli.named_rewards import named_reward
from trl_ext.evaluation import score
from trl_ext.reward_evaluation.pair_statistics import wilson_interval
from trl_ext.rewards.similarities import places, similarities
from trl_ext.rewards.told_apart import wins
from trl_ext.sequences.texts import unicode_wordpunct

KINDS = ("easy", "hard")
Texts = list[str]
Scorer = Callable[[Texts, Texts], list[float]]  # of queries and answers


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--encoder", nargs="+", default=[], help="paths or hub ids")
    add("--reward", nargs="+", default=[], help="paths of reward models, or functions as module:name or file.py:name")
    add("--data", type=Path, nargs="+", required=True)
    add("--rows", type=int, default=100, help="of each file, the first ones")
    add("--max-length", type=int, default=256, help="tokens that an encoder reads of a text")
    add("--output", type=Path, help="the table's numbers as JSON")
    return parser.parse_args(arguments)


def sets(file: Path, rows: int) -> Iterator[tuple[str, Texts, Texts, Texts]]:
    """By name: queries, relevant and irrelevant answers."""
    read = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:rows]]
    short = [row | row["short"] for row in read if "short" in row]
    for name, part in {file.stem: read, f"{file.stem}, short": short}.items():
        for kind in KINDS:
            chosen = [row for row in part if row.get(f"irrelevant_{kind}")]
            columns = [[row[field] for row in chosen] for field in ("query", "relevant", f"irrelevant_{kind}")]
            if chosen:
                yield f"{name}, {kind}", *columns


def encoder_scorer(relevance: RelevanceReward, kind: str, known: dict[str, torch.Tensor]) -> Scorer:
    """Texts are encoded once, whichever sets they are in and however they are compared."""

    def scores(queries: Texts, answers: Texts) -> list[float]:
        new = [text for text in dict.fromkeys(queries + answers) if text not in known]
        known.update(zip(new, relevance.vectors(new), strict=True) if new else ())
        left, right = (torch.stack([known[text] for text in texts]) for texts in (queries, answers))
        return similarities(left, right, kind=kind).tolist()

    return scores


def reward_scorer(name: str) -> Scorer:
    reward = named_reward(name)

    def scores(queries: Texts, answers: Texts) -> list[float]:
        [found] = score(reward, queries, [f" {answer}" for answer in answers], max_completion_length=512).values()
        return [math.nan if value is None else value for value in found]

    return scores


def bm25(queries: Texts, answers: Texts) -> list[float]:
    """Each answer's score for its query, with the words' rarity among all the answers."""
    words = [[word.lower() for word in unicode_wordpunct(text)] for text in [*answers, *queries]]
    documents = list(dict.fromkeys(answers))
    index = BM25([words[i] for i in places(documents, answers)])
    asked = words[len(answers) :]
    found = zip(asked, places(answers, documents), strict=True)
    return [float(index.get_scores(query)[place]) for query, place in found]


def length(queries: Texts, answers: Texts) -> list[float]:
    return [float(len(unicode_wordpunct(answer))) for answer in answers]


def scorers(args: argparse.Namespace) -> dict[str, Scorer]:
    found = {}
    for path in args.encoder:
        relevance, known = RelevanceReward(path, max_length=args.max_length), {}
        for kind in ("dot", "cosine"):
            found[f"{Path(path).name}, {kind}"] = encoder_scorer(relevance, kind, known)
    found |= {f"{Path(name).name} (reward)": reward_scorer(name) for name in args.reward}
    return found | {"BM25": bm25, "length": length}


def won(scorer: Scorer, queries: Texts, relevant: Texts, irrelevant: Texts) -> list[float]:
    """Of each row, whether its relevant answer scores higher; ½ where both score the same."""
    own, other = torch.tensor(scorer(queries * 2, relevant + irrelevant)).chunk(2)
    return wins(own, other).tolist()


def accuracy(scorer: Scorer, queries: Texts, relevant: Texts, irrelevant: Texts) -> tuple[float, float, float]:
    """Share of rows whose relevant answer scores higher, with its interval."""
    found = won(scorer, queries, relevant, irrelevant)
    return interval(mean(found), len(found))


def interval(share: float, count: int) -> tuple[float, float, float]:
    """A share with Wilson's 95 % interval.

    >>> [round(each, 3) for each in interval(1.0, 100)]
    [1.0, 0.963, 1.0]
    """
    low, high = wilson_interval(share, count)
    return share, low, min(high, 1.0)


def against_the_first(rows: dict[str, dict[str, list[float]]]) -> str:
    """Each one's share less the first one's of the same rows, by name and set; in bold what is resolved."""
    first, *others = rows
    lines = [[f"less {first}", *rows[first]]]
    for name in others:
        lines.append([name, *(_in_bold(each, rows[first][which]) for which, each in rows[name].items())])
    return markdown(lines)


def _in_bold(own: list[float], other: list[float]) -> str:
    value, _, said = paired_difference(own, other).partition(" (")
    return f"**{value}**" if said == "resolved)" else value


def main(arguments: list[str] | None = None) -> None:
    quiet()
    args = parse(arguments)
    check_library("relevance")
    data = {name: columns for file in args.data for name, *columns in sets(file, args.rows)}
    print("| | " + " | ".join(f"{name} ({len(columns[0])})" for name, columns in data.items()) + " |")
    print("|---|" + "--:|" * len(data))
    rows: dict[str, dict[str, list[float]]] = {}
    for name, scorer in scorers(args).items():
        rows[name] = {which: won(scorer, *columns) for which, columns in data.items()}
        found = (interval(mean(each), len(each)) for each in rows[name].values())
        cells = (f"{100 * share:.0f} ({100 * low:.0f}–{100 * high:.0f})" for share, low, high in found)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("\n" + against_the_first(rows))
    if args.output:
        shares = {
            name: {which: interval(mean(each), len(each)) for which, each in columns.items()}
            for name, columns in rows.items()
        }
        args.output.write_text(json.dumps(shares, indent=1))


if __name__ == "__main__":
    main()
