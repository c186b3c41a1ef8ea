"""What `improve_patience` does to ReST: the held-out score, and what the run costs.

    python -m examples.benchmarks.self_training.improve_patience --output-dir improve_patience

On the demo's world (see equal_cost.py), two stages of three Improves of 18 steps, an evaluation every three steps, all arms
with `keep_best`. Beside patience 2: Improves that are shorter from the start, 15 steps, the control.

Primary endpoint, paired within seeds: the judge's score at the end, on held-out questions that no evaluation inside the run has
asked. Secondary: cost in token passes. Differences are mean ± standard error over seeds,
resolved as `paired_difference` says.
"""

import argparse
import json
import random
import time
from pathlib import Path
from statistics import mean

import transformers
from datasets import Dataset

from examples.benchmarks.common.demo_setting import Setting, prepare
from examples.benchmarks.common.over_seeds import paired_difference
from examples.benchmarks.common.quiet_runs import on_cpu, quiet
from examples.benchmarks.self_training.equal_cost import LEARNING_RATE, answers_to_questions
from trl_ext import ReSTConfig, ReSTTrainer
from trl_ext.demo.answers import sft_rows
from trl_ext.demo.stages import COMPLETION_LENGTH
from trl_ext.demo.world import questions

WITHOUT = "patience 0"
ARMS = {WITHOUT: {}, "patience 2": {"improve_patience": 2}, "15 steps": {"improve_steps": 15}}
EVALUATED = 64  # of the held-out questions, inside the run; the others are the last look's
REST = {
    "max_completion_length": COMPLETION_LENGTH,
    "per_device_train_batch_size": 32,
    "learning_rate": LEARNING_RATE,
    "thresholds": [0.6, 0.7, 0.8],
    "score_map": "grow",
    "stage_batch_size": 256,
    "num_stages": 2,
    "improve_steps": 18,
    "keep_best": True,
    "eval_strategy": "steps",
    "eval_steps": 3,
}


def run(arm: str, setting: Setting, folder: Path) -> dict[str, float]:
    """One arm on one seed: what the last look thinks of it, and its cost in million token passes."""
    unseen = list({row["prompt"]: row for row in questions(setting.world, held_out=True)}.values())
    random.Random(setting.seed).shuffle(unseen)
    inside = Dataset.from_list([{"prompt": row["prompt"]} for row in unseen[:EVALUATED]])
    rows = Dataset.from_list(sft_rows(setting.world, count=4096, seed=setting.seed))
    config = ReSTConfig(**on_cpu(folder / "runs" / f"{arm} {time.time_ns()}", setting.seed) | REST | ARMS[arm])
    trainer = ReSTTrainer(str(setting.policy), setting.reward, config, rows, eval_dataset=inside)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return answers_to_questions(trainer.model, setting, unseen[EVALUATED:] * 2) | {"cost": trainer.table.cost / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    quiet()
    found: dict[str, list[dict]] = {arm: [] for arm in ARMS}
    for seed in args.seeds:
        folder = args.output_dir / f"seed-{seed}"
        for arm in ARMS:
            found[arm].append(run(arm, prepare(folder, seed), folder))
            shown = ", ".join(f"{name} {found[arm][-1][name]:.3f}" for name in ("judge", "right", "cost"))
            print(f"seed {seed}, {arm}: {shown}", flush=True)
    (args.output_dir / "results.json").write_text(json.dumps(found))
    for arm, results in found.items():
        for name in ("judge", "cost"):
            values, others = ([result[name] for result in runs] for runs in (results, found[WITHOUT]))
            beside = "" if arm == WITHOUT else f"; − {WITHOUT}: {paired_difference(values, others)}"
            print(f"{arm}, {name}: {mean(values):.3f}{beside}")


if __name__ == "__main__":
    main()
