"""What fools R³: gaming texts beside honest answers, on real prompts, and which option helps.

    python -m examples.benchmarks.r3.gaming --encoder ENCODER --open alpacafarm_val.jsonl --closed closed_tasks.jsonl

Rows are JSON lines with `query` and `reference`; of --open those whose `qtype` is OPENENDED, where there is such a column. The
first --rows of each, drawn with --seed. The honest answer is the reference, so that on closed rows r_y compares it with itself.

Primary endpoint, named before the run: how many of the nine gaming texts earn more than the honest answer, as the mean difference
over rows above two standard errors, on open rows, under each arm. Secondary: rank of the honest answer, share of rows in which a
text earns more, means of each factor. No training, nothing is sampled.
"""

import argparse
import json
import random
from pathlib import Path
from statistics import fmean, median, stdev

from trl_ext import LengthIncentive, R3Reward, RelevanceReward, RepetitionPenalty, Route, RoutedProduct
from trl_ext.diagnostics import Probe, probe_reward
from trl_ext.diagnostics.baskets import HONEST
from trl_ext.diagnostics.probing import mean_of


class Remembered:
    """A factor that several arms share, which scores the same completions once."""

    def __init__(self, factor):
        self.factor, self.name, self.known = factor, factor.name, {}

    def __call__(self, *, completions: list, **columns) -> list[float]:
        key = tuple(completions)
        if key not in self.known:
            self.known[key] = self.factor(completions=completions, **columns)
        return self.known[key]


def rows_of(path: Path, kind: str, count: int, seed: int) -> list[dict]:
    """So many rows with an answer, drawn from the file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("reference") and row.get("qtype", "OPENENDED") == "OPENENDED"]
    drawn = random.Random(seed).sample(rows, min(count, len(rows)))
    return [{"prompt": row["query"], "reference": row["reference"], "query_type": kind} for row in drawn]


def arms(encoder: str, rows: list[dict]) -> dict[str, tuple[object, float]]:
    """Of each arm its reward, and what a missing end costs."""
    relevance, repetition = Remembered(RelevanceReward(encoder)), RepetitionPenalty()
    contrast = Remembered(RelevanceReward(encoder, contrast=True))
    lengths = LengthIncentive()(completions=[row["reference"] for row in rows])
    cap = LengthIncentive(cap=round(100 * median(lengths)))

    def product(*factors) -> RoutedProduct:
        return RoutedProduct((Route("open", factors),))

    paper = product(relevance, LengthIncentive(), repetition)  # R3Reward's open route
    return {
        "R³": (paper, 0.0),
        "R³, missing_eos_penalty 1": (paper, 1.0),
        f"R³, LI capped at {cap.cap} tokens": (product(relevance, cap, repetition), 0.0),
        f"R³, LI capped at {cap.cap}, missing_eos_penalty 1": (product(relevance, cap, repetition), 1.0),
        "r_x": (product(relevance), 0.0),
        "LI · RP": (product(LengthIncentive(), repetition), 0.0),
        "R³, contrast": (product(contrast, LengthIncentive(), repetition), 0.0),
        f"R³, LI capped at {cap.cap}, contrast": (product(contrast, cap, repetition), 0.0),
        "routed as closed: r_y · RP": (product(RelevanceReward(encoder, to="reference"), repetition), 0.0),
    }


def baskets_table(probe: Probe) -> str:
    """In Markdown: a line per text."""
    names = {
        "relevance_prompt": "r_x",
        "relevance_reference": "r_y",
        "length_incentive": "LI",
        "repetition_penalty": "RP",
    }
    factors = {names.get(name, name): values for name, values in probe.factors.items()}
    lines = [f"| | {' | '.join(factors)} | R³ | above the honest answer |", f"|---|{'---|' * (len(factors) + 2)}"]
    for basket in sorted(probe.scores, key=lambda basket: -mean_of(probe.scores[basket])):
        scores = probe.scores[basket]
        cells = [f"{mean_of(values[basket]):.2f}" for values in factors.values()]
        error = stdev(scores) / len(scores) ** 0.5
        share = "" if basket == HONEST else f"{probe.wins(basket):.0%}"
        name = f"**{basket}**" if basket in probe.fooled_by else basket
        lines.append(f"| {name} | {' | '.join(cells)} | {mean_of(scores):.2f} ± {error:.2f} | {share} |")
    return "\n".join(lines)


def nearest(probe: Probe) -> str:
    """The gaming text that earns most, and its paired difference to the honest answer."""
    gaps = {basket: probe.gaps(basket) for basket in probe.scores if basket != HONEST}
    best = max(gaps, key=lambda basket: fmean(gaps[basket]))
    return f"{best}: {fmean(gaps[best]):+.2f} ± {stdev(gaps[best]) / len(gaps[best]) ** 0.5:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", required=True, help="path or id of a sentence encoder with vectors of length 1")
    parser.add_argument("--open", type=Path, required=True)
    parser.add_argument("--closed", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--words", type=int, default=150, help="length of the long texts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = {kind: rows_of(getattr(args, kind), kind, args.rows, args.seed) for kind in ("open", "closed")}
    probes = {}
    for name, (reward, penalty) in arms(args.encoder, rows["open"]).items():
        probes[name] = probe_reward(reward, rows["open"], words=args.words, missing_eos_penalty=penalty)
        print(f"{name}: {probes[name].said()}; {nearest(probes[name])}", flush=True)
    print(f"\nOpen, {len(rows['open'])} rows:\n\n{baskets_table(probes['R³'])}")
    paper = R3Reward(relevance=RelevanceReward(args.encoder), top_relevance=1.0, max_completion_length=256)
    closed = probe_reward(paper, rows["closed"], words=args.words)
    print(f"\nClosed, {len(rows['closed'])} rows ({closed.said()}):\n\n{baskets_table(closed)}\n")
    print(
        "| arm, open rows | honest answer's rank | fooled by | best-paid text less the honest answer |\n|---|---|---|---|"
    )
    for name, probe in probes.items():
        fooled = ", ".join(probe.fooled_by) or "none"
        print(f"| {name} | {probe.rank} of {len(probe.scores)} | {fooled} | {nearest(probe)} |")


if __name__ == "__main__":
    main()
