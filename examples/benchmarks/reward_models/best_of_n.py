"""Does best of n over-optimise on the demo's world, and does an ensemble help?

    python -m examples.benchmarks.reward_models.best_of_n --output-dir best_of_n

The gold is a reward model of 1600 pairs about one half of the people and towns. Proxies learn from pairs about the other half, of
which a quarter have their sides exchanged: four members of 96 pairs each, drawn with replacement from a pool of 384, with heads and
orders of their own; and, as control of equal cost, one of all 384. All begin with the same policy after SFT, whose answers to 32
held-out questions about the second half are chosen from. Members are standardised on its answers to 64 training questions.

Primary endpoint: gold of the best of all 1024 samples by the ensemble's mean, less that by the control, in deviations of gold over
the policy's samples; mean over seeds ± standard error over seeds, resolved as `paired_difference` says. Beside it: min, mean less
variance, the single members (their mean); gold at n = 1024 less that at n = 64, which below 0 is over-optimisation; and the share of
closed questions answered right, which no model judges. Every sample is drawn once and scored once by each model. A seed whose
curves are in OUTPUT already is not run again.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from datasets import Dataset

from examples.benchmarks.common.quiet_runs import quiet
from examples.benchmarks.reward_models.best_of_n_table import CONTROL, ENSEMBLES, MEMBER, draw, page
from examples.benchmarks.reward_models.bon_models import halves, made
from trl_ext import EnsembleReward, LearnedReward, score
from trl_ext.demo import stages
from trl_ext.demo.answers import preference_rows, sample_questions
from trl_ext.demo.evaluation import pair_accuracy
from trl_ext.demo.world import load_world
from trl_ext.reward_evaluation import BestOfN, BestOfNCurve, best_of_n, best_of_n_curve
from trl_ext.rewards.ensemble_standard import combined_scores

REFERENCES = 64, 8  # questions, and samples of each
BATCH = 256
NAMES = ["attribute", "answer"]  # what tells whether an answer is right


def run(folder: Path, args: argparse.Namespace, *, seed: int) -> dict[str, dict]:
    """Every arm's curve of one seed as JSON takes it, by the arm; those of the members under their numbers."""
    models, (_, half) = made(folder, seed=seed, flipped=args.flipped), halves(load_world())
    asked, trained = (
        Dataset.from_list(sample_questions(half, held_out=held_out, count=count, seed=seed))
        for held_out, count in ((True, args.prompts), (False, REFERENCES[0]))
    )
    start = sampled(models.policy, trained, n=REFERENCES[1], seed=seed + 1000)
    learned = [stages.learned(path) for path in models.members]
    reference = start.samples["prompt"][:], start.samples["completion"][:]
    standard = EnsembleReward(learned).standardised_on(*reference, **ended(start)).standard
    print(standard, flush=True)
    found = sampled(models.policy, asked, n=args.n, seed=seed)
    members = np.stack([scores_of(member, found) for member in learned], axis=-1)  # scored once for all ensembles
    control, gold = (scores_of(stages.learned(path), found) for path in (models.control, models.gold))
    proxies = {CONTROL: control}
    proxies |= {f"{MEMBER} {i}": members[:, i] for i in range(len(learned))}
    proxies |= {name: combined_scores(standard.applied(members), how) for name, how in ENSEMBLES.items()}
    measured = Measured.of(found, asked, gold)
    curves = {name: curve_of(scores, measured) for name, scores in proxies.items()}
    pairs = preference_rows(half, held_out=True, count=400, seed=seed + 2)
    kept = {name: curve.as_dict() | {"right": right} for name, (curve, right) in curves.items()}
    kept["models"] = {
        "gold": pair_accuracy(models.gold, pairs),
        "control": pair_accuracy(models.control, pairs),
        "member": mean(pair_accuracy(path, pairs) for path in models.members),
        "correlation": standard.mean_correlation,
    }
    return kept


def sampled(policy: Path, questions: Dataset, *, n: int, seed: int) -> BestOfN:
    """The policy's samples, which nobody has chosen from."""
    return best_of_n(
        str(policy),
        unscored,
        questions,
        n=n,
        max_completion_length=stages.COMPLETION_LENGTH,
        batch_size=BATCH,
        seed=seed,
    )


def unscored(completions: list[str], **columns) -> list[float]:
    return [0.0] * len(completions)


def ended(found: BestOfN) -> dict[str, list[bool]]:
    return {"completion_ended": found.samples["ended"][:]}


def scores_of(model: LearnedReward, found: BestOfN) -> np.ndarray:
    """Of every sample; equal ones are read once."""
    rows = list(zip(*(found.samples[name][:] for name in ("prompt", "completion", "ended")), strict=True))
    prompts, completions, ends = map(list, zip(*dict.fromkeys(rows), strict=True))
    values = score(model, prompts, completions, completion_ended=ends)[model.__name__]
    known = dict(zip(dict.fromkeys(rows), values, strict=True))
    return np.array([known[row] for row in rows])


@dataclass(frozen=True)
class Measured:
    """What every proxy's choice is measured by, `(P, N)` each, and the prompts.

    Args:
        gold: The gold model's score.
        right: 1 for a closed question answered right, NaN for an open one.
        texts: The samples.
        prompts: P of them.
    """

    gold: np.ndarray
    right: np.ndarray
    texts: list[list[str]]
    prompts: list[str]

    @classmethod
    def of(cls, found: BestOfN, asked: Dataset, gold: np.ndarray) -> "Measured":
        shape, rows, texts = (-1, found.num_samples), found.samples["row"][:], found.samples["completion"][:]
        columns = {
            name: [values[row] for row in rows] for name, values in asked.select_columns(NAMES).to_dict().items()
        }
        right = np.array(stages.closed_right(texts, **columns), dtype=float)
        grid = np.array(texts, dtype=object).reshape(shape).tolist()
        return cls(gold.reshape(shape), right.reshape(shape), grid, found.best["prompt"][:])


def curve_of(scores: np.ndarray, measured: Measured) -> tuple[BestOfNCurve, list[float]]:
    """The curve by a proxy's scores, and the share of closed questions that the best of n answers right."""
    table = scores.reshape(measured.gold.shape)
    curve = best_of_n_curve(table, measured.gold, prompts=measured.prompts, texts=measured.texts)
    by_right = best_of_n_curve(table, measured.right)
    mean_right, deviation = by_right.gold_centre
    return curve, (mean_right + deviation * by_right.gold).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("best_of_n"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--n", type=int, default=1024, help="samples of each question")
    parser.add_argument("--prompts", type=int, default=32, help="questions")
    parser.add_argument("--flipped", type=float, default=0.25, help="share of the proxies' pairs with exchanged sides")
    args = parser.parse_args()
    quiet()
    found = [once(args, seed) for seed in args.seeds]
    print(page(found))
    draw(args.output_dir / "curves.png", found)


def once(args: argparse.Namespace, seed: int) -> dict[str, dict]:
    """A seed's curves, made if they are not there."""
    folder, began = args.output_dir / f"s{seed}-{args.flipped:g}", time.process_time()
    file = folder / f"curves-{args.n}-{args.prompts}.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(run(folder, args, seed=seed)))
        spent, count = time.process_time() - began, len(args.seeds)
        print(f"seed {seed}: {spent:.0f} CPU s; all {count} seeds about {count * spent / 60:.0f} min", flush=True)
    return json.loads(file.read_text())


if __name__ == "__main__":
    main()
