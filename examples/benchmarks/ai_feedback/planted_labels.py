"""What an AI's labels keep of the truth: on the demo's world, where it is known, by a judge whose faults are planted.

    python -m examples.benchmarks.ai_feedback.planted_labels --output-dir DIR

The judge is the demo's language model, fine-tuned on its own questions (`planted_judge.py`) until it is wrong about 30 %, or 10 %,
of pairs that it did not learn from, and calibrated; its position bias, 0, 1 or 2 logits for the first place, is a bias of its head,
exact in the mean. There is one judge per error; seeds draw pairs, their order, heads and samples.

Printed: the judge as it was measured; what labels agree with the truth; how often reward models of those labels, and one of true
labels of as many pairs, are right about held-out pairs; and direct RLAIF, by the judge's grade, against the reward model that was
distilled from its labels: about the same pairs, and choosing the best of eight answers of the policy to held-out closed questions.

Said before the run, the primary endpoint: accuracy on held-out pairs with true labels, of the judge of error 0.3 and a bias of 2
logits: the reward model of soft labels of both orders, less that of hard labels of one order; mean of the differences within seeds ±
standard error, resolved from `errors_to_see` of them on. All else is beside it.
"""

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from datasets import Dataset

from examples.benchmarks.ai_feedback import planted_judge
from examples.benchmarks.ai_feedback.label_ways import (
    BIASES,
    BOTH_SOFT,
    ERRORS,
    LABELLINGS,
    ONE_HARD,
    ONE_SOFT,
    labelled,
    labels,
    logit,
    of_labels,
    shown_pairs,
)
from examples.benchmarks.ai_feedback.planted_table import print_tables
from trl_ext import LikertReward, PreferenceLabeler
from trl_ext.ai_feedback import Preamble
from trl_ext.demo import stages
from trl_ext.demo.answers import preference_rows, sample_questions
from trl_ext.demo.evaluation import pair_accuracy
from trl_ext.demo.world import load_world
from trl_ext.reward_evaluation import best_of_n

TRAINED = {  # of which labels there are reward models, by error and bias
    (0.3, 0.0): (BOTH_SOFT,),
    (0.1, 0.0): (BOTH_SOFT,),
    (0.3, 2.0): LABELLINGS,
    (0.1, 2.0): (ONE_HARD, BOTH_SOFT),
}
PREAMBLE = Preamble(
    "", planted_judge.PAIR, planted_judge.ENDING, "Why:", tuple(a.strip() for a in planted_judge.ANSWERS)
)
SAMPLES = 8


def made_judges(folder: Path, errors: Sequence[float] = ERRORS, *, pairs: int) -> dict[float, Path]:
    """The judges by their error, made once."""
    places = {error: folder / f"judge-{error:g}" for error in errors}
    if not all((place / "model.safetensors").exists() for place in places.values()):
        tokenizer = planted_judge.judge_tokenizer()
        for error, model in planted_judge.train_judges(load_world(), errors=tuple(errors), pairs=pairs, seed=0):
            planted_judge.saved(model, tokenizer, places[error])
    return places


def in_first_place(rows: list[dict], judge: Path) -> list[tuple[float, float]]:
    """Of pairs as they are shown, P(the one in the first place is better), as shown and turned around, without a bias."""
    model, tokenizer = loaded(judge, bias=0.0)
    labeler = PreferenceLabeler(model, tokenizer, preamble=PREAMBLE, batch_size=64)
    return [judgement.places for judgement in labeler.judge(Dataset.from_list(rows))]


def loaded(judge: Path, *, bias: float):
    """The judge, calibrated once on pairs like those that it learned from, with a position bias; and its tokenizer."""
    tokenizer = planted_judge.PreTrainedTokenizerFast.from_pretrained(judge)
    model = planted_judge.LlamaForCausalLM.from_pretrained(judge, dtype=torch.float32)
    pairs = preference_rows(load_world(), held_out=False, count=planted_judge.LOOKED_AT, seed=3000)
    margins = partial(planted_judge.margins, model, tokenizer, pairs)
    scale, own = kept(judge / "calibration.json", lambda: planted_judge.calibration(margins()))
    return planted_judge.planted(model, tokenizer, bias=bias, scale=scale, own=own), tokenizer


def measured_judge(judge: Path, *, pairs: int) -> dict[str, float]:
    """Its error on pairs of questions that nobody learns from, and its bias through the head, measured by the labeler."""
    rows = preference_rows(load_world(), held_out=True, count=pairs, seed=77)
    found = {"error": planted_judge.error_of(planted_judge.margins(*loaded(judge, bias=0.0), rows))}
    shown, _ = shown_pairs(rows[:60], seed=77)
    plain = in_first_place(shown, judge)
    for bias in BIASES[1:]:
        labeler = PreferenceLabeler(*loaded(judge, bias=bias), preamble=PREAMBLE, batch_size=64)
        places = [each.places for each in labeler.judge(Dataset.from_list(shown))]
        found[f"bias {bias:g}"] = mean(
            logit(b) - logit(a)
            for one, other in zip(plain, places, strict=True)
            for a, b in zip(one, other, strict=True)
        )
        found[f"same place at {bias:g}"] = labeler.report.position_bias
    sure = mean(max(p, 1 - p) for pair in plain for p in pair)
    return found | {"own bias": mean(logit(one) + logit(turned) for one, turned in plain) / 2, "sure": sure}


def run(folder: Path, judges: dict[float, Path], args: argparse.Namespace, *, seed: int) -> dict[str, dict]:
    """All that one seed measures, as JSON takes it."""
    world, policy = load_world(), args.output_dir / "sft"
    if not (policy / "model.safetensors").exists():
        stages.supervised(world, policy, stages.FULL, seed=0)
    held_out = preference_rows(world, held_out=True, count=args.held_out, seed=seed)
    rows, truth = shown_pairs(preference_rows(world, held_out=False, count=args.pairs, seed=seed), seed=seed)
    of_truth, trained = {}, {}
    sets = {"true labels": labelled(rows, [float(first) for first in truth], soft=False)}
    for error, judge in judges.items():
        places = in_first_place(rows, judge)
        for bias in BIASES:
            for how in LABELLINGS:
                found = labels(places, bias, how)
                name = f"{error:g} | {bias:g} | {how}"
                of_truth[name] = of_labels(found, truth)
                if how in TRAINED.get((error, bias), ()):
                    sets[name] = labelled(rows, found, soft=how in (ONE_SOFT, BOTH_SOFT))
    learned = {name: folder / name.replace(" | ", "-").replace(" ", "_") for name in sets}
    for name, pairs in sets.items():
        place = learned[name]
        if not (place / "model.safetensors").exists():
            stages.reward_model_of(pairs, policy, place, imitation_coef=0.0, seed=seed)
        trained[name] = pair_accuracy(place, held_out)
    for error, judge in judges.items():
        trained[f"{error:g} | direct, by grade"] = accuracy_of(graded(judge), held_out)
    return {"labels": of_truth, "rewards": trained, "chosen": chosen(policy, judges, learned, args, seed=seed)}


def graded(judge: Path) -> LikertReward:
    model, tokenizer = loaded(judge, bias=0.0)
    return LikertReward(model, tokenizer=tokenizer, template=planted_judge.GRADE, batch_size=128)


def accuracy_of(reward: LikertReward, pairs: list[dict]) -> float:
    """Share of pairs in which the chosen answer gets more, as `pair_accuracy` has it of reward models."""
    prompts = [pair["prompt"] for pair in pairs]
    better, worse = (
        reward(prompts=prompts, completions=[pair[side] for pair in pairs]) for side in ("chosen", "rejected")
    )
    return mean(one > other for one, other in zip(better, worse, strict=True))


def chosen(
    policy: Path, judges: dict[float, Path], learned: dict[str, Path], args: argparse.Namespace, *, seed: int
) -> dict[str, float]:
    """Share of closed questions that the best of eight answers it right, by who chooses."""
    questions = [row for row in sample_questions(load_world(), held_out=True, count=2 * args.prompts, seed=seed)]
    asked = Dataset.from_list([row for row in questions if row["query_type"] == "closed"])
    options = {"n": SAMPLES, "max_completion_length": stages.COMPLETION_LENGTH, "batch_size": 128, "seed": seed}
    samples = best_of_n(str(policy), stages.learned(learned["true labels"]), asked, **options).samples
    prompts, completions, rows = (samples[name][:] for name in ("prompt", "completion", "row"))
    right = stages.closed_right(completions, *([asked[name][row] for row in rows] for name in ("attribute", "answer")))
    found = {"one sample": mean(right)}
    for name, reward in _choosers(judges, learned).items():
        scores = reward(prompts=prompts, completions=completions, completion_ended=samples["ended"][:])
        best = np.array(scores).reshape(-1, SAMPLES).argmax(1)
        found[name] = float(np.array(right).reshape(-1, SAMPLES)[np.arange(len(best)), best].mean())
    return found | {"any of eight": float(np.array(right).reshape(-1, SAMPLES).max(1).mean())}


def _choosers(judges: dict[float, Path], learned: dict[str, Path]) -> dict:
    found = {"reward model of true labels": stages.learned(learned["true labels"])}
    for error, judge in judges.items():
        found[f"{error:g} | direct, by grade"] = graded(judge)
        found[f"{error:g} | distilled"] = stages.learned(learned[f"{error:g} | 0 | {BOTH_SOFT}"])
    return found


def kept(file: Path, make) -> dict:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(make()))
    return json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("planted_labels"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--errors", type=float, nargs="+", default=ERRORS, choices=ERRORS, help="of the judges")
    parser.add_argument("--judge-pairs", type=int, default=16000, help="most that the judge learns from")
    parser.add_argument("--pairs", type=int, default=256, help="that are labelled")
    parser.add_argument("--held-out", type=int, default=240, help="true pairs that reward models are asked about")
    parser.add_argument("--prompts", type=int, default=48, help="closed questions")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="LikertReward")
    judges, of_errors = (
        made_judges(args.output_dir, args.errors, pairs=args.judge_pairs),
        "-".join(f"{each:g}" for each in args.errors),
    )
    judged = kept(
        args.output_dir / f"judges-{of_errors}.json",
        lambda: {f"{error:g}": measured_judge(judge, pairs=args.held_out) for error, judge in judges.items()},
    )
    found = []
    for seed in args.seeds:
        folder, began = args.output_dir / f"s{seed}", time.process_time()
        found.append(kept(folder / f"found-{of_errors}.json", lambda: run(folder, judges, args, seed=seed)))  # noqa: B023
        spent = time.process_time() - began
        if spent > 1:
            print(
                f"seed {seed}: {spent:.0f} CPU seconds; all {len(args.seeds)} about {len(args.seeds) * spent / 60:.0f} min",
                flush=True,
            )
    print_tables(judged, found)


if __name__ == "__main__":
    main()
