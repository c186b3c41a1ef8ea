"""Rounds of AI feedback: is a judge worth more where it labels again what the new policy says? And is a reward model needed?

    python -m examples.benchmarks.ai_feedback.planted_rounds --output-dir DIR      # with planted_labels' judges, if they are there

From the demo's policy after SFT, by the planted judge of error 0.3 (`--error`) and a bias of 2 logits (`--bias`), with soft labels of
both orders. Three arms of as many samples that are chosen from, the first two of as many labels:

    one round      pairs of the start's samples are labelled, a reward model is trained on them, two stages of RAFT by it
    two rounds     half of the pairs; a stage of RAFT; half of the pairs anew from that policy, a reward model of all; a stage of RAFT
    direct         two stages of RAFT by the judge's own grades, `LikertReward`

Said before the run, the primary endpoint: share of held-out closed questions answered right, two rounds less one; mean of the
differences within seeds ± standard error, resolved from `errors_to_see` of them on.
"""

import argparse
import time
import warnings
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets

from examples.benchmarks.ai_feedback import planted_judge
from examples.benchmarks.ai_feedback.planted_labels import PREAMBLE, kept, loaded, made_judges
from examples.benchmarks.common.over_seeds import mean_and_deviation, paired_difference
from trl_ext import LikertReward, PreferenceLabeler, RAFTConfig, RAFTTrainer, evaluate
from trl_ext.demo import stages
from trl_ext.demo.answers import sample_questions
from trl_ext.demo.world import load_world
from trl_ext.self_training.run_folder import forget_run

ARMS = ("start", "one round", "two rounds", "direct")


def questions(count: int, *, held_out: bool, seed: int) -> Dataset:
    return Dataset.from_list(sample_questions(load_world(), held_out=held_out, count=count, seed=seed))


def labels_of(policy: Path, asked: Dataset, labeler: PreferenceLabeler, *, seed: int) -> Dataset:
    """Two answers of the policy to each question, labelled; equal and empty ones are left out."""
    looked = evaluate(
        policy, asked, stages.closed_right, references_column=None, num_samples=2, batch_size=128, seed=seed,
        max_completion_length=stages.COMPLETION_LENGTH,
    )  # fmt: skip
    said = looked.samples["completion"][:]
    pairs = zip(asked["prompt"][:], said[::2], said[1::2], strict=True)
    rows = [{"prompt": p, "completion_1": a, "completion_2": b} for p, a, b in pairs if a.strip() and b.strip()]
    return labeler.label(Dataset.from_list(rows))


def learned_from(labels: Dataset, start: Path, folder: Path, *, seed: int):
    if not (folder / "model.safetensors").exists():
        stages.reward_model_of(labels.to_list(), start, folder, imitation_coef=0.0, seed=seed)
    return stages.learned(folder)


def raft(policy: Path, reward, asked: Dataset, folder: Path, *, num_stages: int, seed: int) -> Path:
    """The best of eight answers to each question, by a reward, in so many stages."""
    args = RAFTConfig(
        output_dir=str(folder), num_stages=num_stages, stage_batch_size=len(asked) // num_stages, num_generations=8,
        num_train_epochs=3.0, per_device_train_batch_size=32, learning_rate=5e-4, lr_scheduler_type="linear",
        max_completion_length=stages.COMPLETION_LENGTH, bf16=False, use_cpu=True, gradient_checkpointing=False,
        dataloader_pin_memory=False, report_to="none", save_strategy="no", logging_steps=1000, disable_tqdm=True, seed=seed,
    )  # fmt: skip
    forget_run(folder)
    trainer = RAFTTrainer(str(policy), reward, args, asked)
    trainer.train()
    trainer.save_model(folder)
    return folder


def run(folder: Path, start: Path, judge: Path, args: argparse.Namespace, *, seed: int) -> dict[str, float]:
    """Share of held-out closed questions answered right, by arm."""
    model, tokenizer = loaded(judge, bias=args.bias)
    labeler = PreferenceLabeler(model, tokenizer, preamble=PREAMBLE, batch_size=64)
    first, second = (questions(args.pairs // 2, held_out=False, seed=seed + i) for i in (10, 20))
    asked = [questions(args.prompts // 2, held_out=False, seed=seed + i) for i in (30, 40)]
    both, policies, options = concatenate_datasets(asked), {"start": start}, {"seed": seed}
    labels = [labels_of(start, each, labeler, seed=seed + i) for i, each in enumerate((first, second))]
    reward = learned_from(concatenate_datasets(labels), start, folder / "reward", **options)
    policies["one round"] = raft(start, reward, both, folder / "one", num_stages=2, **options)
    reward = learned_from(labels[0], start, folder / "reward-1", **options)
    halfway = raft(start, reward, asked[0], folder / "two-1", num_stages=1, **options)
    again = labels_of(halfway, second, labeler, seed=seed + 2)
    reward = learned_from(concatenate_datasets([labels[0], again]), start, folder / "reward-2", **options)
    policies["two rounds"] = raft(halfway, reward, asked[1], folder / "two-2", num_stages=1, **options)
    grade = LikertReward(model, tokenizer=tokenizer, template=planted_judge.GRADE, batch_size=128)
    policies["direct"] = raft(start, grade, both, folder / "direct", num_stages=2, **options)
    held_out = questions(args.held_out, held_out=True, seed=seed)
    return {name: closed_right(policies[name], held_out, seed=seed) for name in ARMS}


def closed_right(policy: Path, asked: Dataset, *, seed: int) -> float:
    looked = evaluate(
        policy, asked, stages.closed_right, references_column=None, num_samples=4, batch_size=128, seed=seed,
        max_completion_length=stages.COMPLETION_LENGTH,
    )  # fmt: skip
    return looked.summary["reward/closed_right"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("planted_labels"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--error", type=float, default=0.3, choices=(0.3, 0.1))
    parser.add_argument("--bias", type=float, default=2.0)
    parser.add_argument("--judge-pairs", type=int, default=16000)
    parser.add_argument("--pairs", type=int, default=320, help="that are labelled, in both rounds together")
    parser.add_argument(
        "--prompts", type=int, default=256, help="that RAFT chooses answers to, in both stages together"
    )
    parser.add_argument("--held-out", type=int, default=128, help="questions, half of them closed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="(LikertReward|PreferenceLabeler)")
    judge = made_judges(args.output_dir, pairs=args.judge_pairs)[args.error]
    start, found = args.output_dir / "sft", []
    if not (start / "model.safetensors").exists():
        stages.supervised(load_world(), start, stages.FULL, seed=0)
    for seed in args.seeds:
        folder, began = args.output_dir / f"rounds-{args.error:g}-{args.bias:g}-s{seed}", time.process_time()
        found.append(kept(folder / "found.json", lambda: run(folder, start, judge, args, seed=seed)))  # noqa: B023
        spent = time.process_time() - began
        if spent > 1:
            print(f"seed {seed}: {spent:.0f} CPU seconds; all {len(args.seeds)} about {len(args.seeds) * spent / 60:.0f} min", flush=True)  # fmt: skip
    print(f"\n| error {args.error:g}, bias {args.bias:g} | held-out closed questions right |\n|---|---|")
    for arm in ARMS:
        print(f"| {arm} | {mean_and_deviation([seed[arm] for seed in found], digits=3)} |")
    print()
    pairs = (("PRIMARY, two rounds less one", "two rounds", "one round"), ("direct less one round", "direct", "one round"),
             ("one round less the start", "one round", "start"))  # fmt: skip
    for said, one, other in pairs:
        print(f"{said}: {paired_difference([seed[one] for seed in found], [seed[other] for seed in found])}")


if __name__ == "__main__":
    main()
