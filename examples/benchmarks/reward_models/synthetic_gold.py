"""Does imitation help a reward model, where the gold is known? Best of n by proxies with and without it.

    python -m examples.benchmarks.reward_models.synthetic_gold --output-dir synthetic_gold
    python -m examples.benchmarks.reward_models.synthetic_gold --output-dir synthetic_gold --trunk fresh    # or a path

As in Gao et al. (2022, arXiv:2210.10760) and Coste et al. (2023, arXiv:2310.02743), on the demo's world: the gold is a reward
model of all layers, from 1600 pairs about half of the questions. The policy after SFT answers 450 questions of another
quarter twice, and the gold says which answer is better. Proxies, of the first half of the policy's layers, learn from
these labels alone, two epochs, as they are or with a quarter of them exchanged; three of each coefficient of imitation, which differ in
head and order. The last quarter has the world's own labels ("people's"), on which gold and proxies are tried. Then all choose from
the same 256 answers to each of 32 questions that are in none of these parts. What is in the folder is not made again.

Primary endpoint, named before the run: gold of the best of all n by one proxy, with imitation of 0.1 less without, a quarter of the
labels exchanged; in deviations of gold over the policy's samples, mean of the three members, paired over seeds. Beside it: labels as
they are, ensembles of the three, Gao's α and β, and d* = α/2β.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from statistics import mean

import numpy as np

from examples.benchmarks.common.quiet_runs import quiet
from examples.benchmarks.reward_models.synthetic_gold_models import (
    Proxy,
    gold_of,
    part_of,
    proxy_of,
    proxy_pairs,
    sampled,
    trunk_of,
)
from examples.benchmarks.reward_models.synthetic_gold_table import print_tables
from trl_ext import score
from trl_ext.demo import stages
from trl_ext.demo.answers import preference_rows, sample_questions
from trl_ext.demo.evaluation import pair_accuracy
from trl_ext.demo.world import load_world
from trl_ext.reward_evaluation import BestOfN, BestOfNCurve, best_of_n_curve, draw_curves
from trl_ext.rewards.ensemble_standard import combined_scores, standard_of
from trl_ext.rewards.reward_callables import Reward

FLIPPED = (0.0, 0.25)
MEMBERS = 3
PAIRS = 450  # of which those that tie or repeat are left out
PEOPLE = 400  # pairs that the world labels
ENSEMBLES = {"ensemble, mean": "mean", "ensemble, min": "min", "ensemble, mean less variance": "mean_minus_variance"}


def run(folder: Path, args: argparse.Namespace, *, seed: int) -> dict:
    """One seed: of gold, how often it is right, and of each share of flipped labels and coefficient what came of its proxies."""
    world = load_world()
    policy, gold = gold_of(folder, seed=seed)
    pairs = proxy_pairs(policy, gold, count=PAIRS, seed=seed)
    trunk = trunk_of(args.trunk, policy, folder / args.trunk)
    questions = sample_questions(world, held_out=True, count=args.prompts, seed=seed)
    found = sampled(policy, gold, questions, n=args.n, seed=seed)
    people = preference_rows(part_of(world, "people", seed=seed), held_out=True, count=PEOPLE, seed=seed + 1)
    kept = {"people": pair_accuracy(gold, people), "pairs": len(pairs), "proxies": {}}
    curves = {}
    for flipped, coef in product(FLIPPED, args.coefs):
        which = [Proxy(flipped, coef, member) for member in range(MEMBERS)]
        made = [proxy_of(pairs, one, trunk, folder / f"proxies-{trunk.name}", seed=seed) for one in which]
        own, drawn = of_proxies(made, found, pairs)
        kept["proxies"][f"{flipped:g} {coef:g}"] = own | {"people": [pair_accuracy(path, people) for path in made]}
        curves |= {f"{flipped:.0%} exchanged, coefficient {coef:g}": drawn}
    draw_curves(folder / f"curves-{trunk.name}.png", curves)
    return kept


def of_proxies(made: list[Path], found: BestOfN, pairs: list[dict]) -> tuple[dict, BestOfNCurve]:
    """Of the proxies of one kind: agreement with gold, the curve of each and of their ensembles, as JSON takes it; and one curve."""
    learned = [stages.learned(path) for path in made]
    shown = [(pair["prompt"], pair[side], True) for pair in pairs for side in ("chosen", "rejected")]
    standard = standard_of({each.__name__: scores_of(each, shown) for each in learned})
    columns = (found.samples[name][:] for name in ("prompt", "completion", "ended"))
    texts = list(zip(*columns, strict=True))
    members = np.stack([scores_of(each, texts) for each in learned], axis=-1)
    gold = np.array(found.samples["proxy"][:]).reshape(-1, found.num_samples)

    def curve(scores: np.ndarray) -> BestOfNCurve:
        return best_of_n_curve(scores.reshape(gold.shape), gold, prompts=found.best["prompt"][:])

    single = [curve(column) for column in members.T]
    z = standard.applied(members)
    combined = {name: curve(combined_scores(z, how)) for name, how in ENSEMBLES.items()}
    own = {
        "single": [each.as_dict() for each in single],
        "agreement": [agreement(column.reshape(gold.shape), gold) for column in members.T],
        "correlation": standard.mean_correlation,
    }
    return own | {name: each.as_dict() for name, each in combined.items()}, single[0]


def scores_of(reward: Reward, texts: list[tuple[str, str, bool]]) -> np.ndarray:
    """Of every text, each different one scored once: prompt, completion, and whether it ended."""
    places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    prompts, completions, ended = map(list, zip(*places, strict=True))
    (scores,) = score(reward, prompts, completions, completion_ended=ended).values()
    return np.array(scores)[[places[text] for text in texts]]


def agreement(proxy: np.ndarray, gold: np.ndarray) -> float:
    """Share of pairs of neighbouring samples that both put in one order, `(P, N)` each; of those that gold tells apart.

    >>> agreement(np.array([[1.0, 2.0, 5.0, 0.0]]), np.array([[1.0, 3.0, 0.0, 2.0]]))
    0.5
    """
    differences = gold[:, 1::2] - gold[:, ::2]
    same = np.sign(differences) == np.sign(proxy[:, 1::2] - proxy[:, ::2])
    return float(same[differences != 0].mean())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("synthetic_gold"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trunk", default="half", help="of the proxies: half, fresh, or a path")
    parser.add_argument("--n", type=int, default=256, help="samples of each question")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--coefs", type=float, nargs="+", default=[0.0, 0.1], help="of imitation; 0 first")
    args = parser.parse_args(arguments)
    quiet()
    found, coefs = [], [f"{coef:g}" for coef in args.coefs]
    for seed in args.seeds:
        folder, began = args.output_dir / f"s{seed}", time.process_time()
        file = folder / f"found-{Path(args.trunk).name}-{args.n}-{args.prompts}-{'-'.join(coefs)}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(run(folder, args, seed=seed)))
            spent = time.process_time() - began
            whole = len(args.seeds) * spent / 60
            print(
                f"seed {seed}: {spent:.0f} CPU seconds; all {len(args.seeds)} seeds about {whole:.0f} min", flush=True
            )
        found.append(json.loads(file.read_text()))
    print(f"\ngold on people's labels: {mean(seed['people'] for seed in found):.3f}")
    print_tables(found, [(f"{flipped:g}", coefs) for flipped in FLIPPED], list(ENSEMBLES))


if __name__ == "__main__":
    main()
