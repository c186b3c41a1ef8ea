"""RAFT, ReST and PPO at equal cost, scored by a judge that none of them was trained on.

    python -m examples.benchmarks.self_training.equal_cost --output-dir self_training                      # six arms, five seeds
    python -m examples.benchmarks.self_training.equal_cost --output-dir self_training --table k            # RAFT with K = 4 to 32
    python -m examples.benchmarks.self_training.equal_cost --output-dir self_training --table grow         # ReST by Grow steps
    python -m examples.benchmarks.self_training.equal_cost --output-dir t08 --temperature 0.8 --arms "RAFT, local" --seeds 0 1 2

On the demo's world: a policy imitates answers of mixed quality; a reward model learns from pairs about one half of the
world, the judge from pairs about the other half. Each arm is paid by the reward model alone and stops when it has
cost `--budget` token passes (forward × 1 + backward × 2, scoring left out). Held-out questions, which no stage trains
on, are answered at several points of each run: the table shows the last, the picture all of them. A run whose
results are in the folder is not run again, so several shells may share the seeds; other flags need another folder.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, TrainerCallback

from examples.benchmarks.common.demo_setting import Setting, prepare
from examples.benchmarks.common.kept_results import flags, read_result, write_result
from examples.benchmarks.common.over_seeds import mean_and_deviation
from examples.benchmarks.common.quiet_runs import on_cpu, quiet
from trl_ext import PPOConfig, PPOTrainer, RAFTConfig, RAFTTrainer, ReSTConfig, ReSTTrainer, evaluate
from trl_ext.demo import stages
from trl_ext.demo.answers import sample_questions, sft_rows

PPO_PASSES = 1 + 1 + 1 + 4 * 3  # sampling, reference, policy and critic, four epochs
LEARNING_RATE = 5e-4
LEFT_OUT = ("output_dir", "seeds", "arms", "table")  # flags that decide no single run
ARMS = {
    "PPO": {},
    "RAFT, local": {"stage_batch_size": 256},
    "RAFT, global": {"stage_batch_size": 256, "selection": "global"},
    "ReST": {"thresholds": [0.6, 0.7, 0.8], "score_map": "grow", "stage_batch_size": 256},
    "ReST^EM": {"thresholds": [0.7], "score_map": "grow", "restart_from_base": True, "improve_epochs": 4.0},
    "random of the same size": {"stage_batch_size": 256, "random_selection": True},
}
TABLES = {  # what METHODS' papers vary, at equal numbers of stages and not at equal cost, as they do
    "k": {
        f"RAFT, K = {k}": {"num_generations": k, "num_stages": 5, "stage_batch_size": 256} for k in (1, 4, 8, 16, 32)
    },
    "grow": {
        "G = 1, τ = 0": {"num_stages": 1, "thresholds": [0.0], "score_map": "grow"},
        "G = 1, four Improves": {"num_stages": 1, "thresholds": [0.5, 0.6, 0.7, 0.8], "score_map": "grow"},
        "G = 2, three Improves": {"num_stages": 2, "thresholds": [0.5, 0.6, 0.7], "score_map": "grow"},
        "G = 4, three Improves": {"num_stages": 4, "thresholds": [0.5, 0.6, 0.7], "score_map": "grow"},
        "G = 8, three Improves": {"num_stages": 8, "thresholds": [0.5, 0.6, 0.7], "score_map": "grow"},
    },
}
MEASURES = {
    "judge": "judge's score, held out",
    "reward": "score it was trained on, held out",
    "right": "closed questions right",
    "perplexity": "perplexity of reference answers",
    "distinct_2": "distinct-2",
    "length": "tokens per answer",
    "cost": "cost (million token passes)",
}


class Probe(TrainerCallback):
    """Answers held-out questions during a run, and ends it at the budget.

    Args:
        setting: Of the seed.
        budget: Token passes; None: the run's own length.
        every: Rollouts (PPO) between two looks; RAFT and ReST are looked at between Improves.
    """

    def __init__(self, setting: Setting, budget: float | None, *, every: int = 4):
        self.setting, self.budget, self.every, self.points, self.trainer = setting, budget, every, [], None
        self.questions = sample_questions(setting.world, held_out=True, count=256, seed=setting.seed)

    def cost(self) -> float:
        if isinstance(self.trainer, PPOTrainer):
            return PPO_PASSES * self.trainer.state.num_input_tokens_seen
        return self.trainer.table.cost

    def on_train_begin(self, args, state, control, **kwargs):
        self.look()

    def on_step_end(self, args, state, control, **kwargs):
        if isinstance(self.trainer, PPOTrainer):
            rollouts, inside = divmod(state.global_step, args.num_iterations)
            if not inside and rollouts % self.every == 0:
                self.look()
            control.should_training_stop |= not inside and self.cost() >= self.budget

    def on_epoch_end(self, args, state, control, **kwargs):
        if not isinstance(self.trainer, PPOTrainer):  # before a next stage begins anew from the base
            self.look()
        if self.budget and not isinstance(self.trainer, PPOTrainer):
            stages = len(self.trainer.table.improves) / args.improves_per_stage
            whole = float(stages).is_integer()
            control.should_training_stop |= whole and self.cost() * (1 + 0.5 / stages) >= self.budget

    def on_train_end(self, args, state, control, **kwargs):
        if self.points[-1]["cost"] < self.cost() / 1e6:
            self.look()

    def look(self) -> None:
        self.points.append(
            answers_to_questions(self.trainer.model, self.setting, self.questions) | {"cost": self.cost() / 1e6}
        )


def answers_to_questions(model, setting: Setting, questions: list[dict]) -> dict[str, float]:
    """One answer to each held-out question at temperature 1, and what is thought of it."""
    looked = evaluate(
        model,
        Dataset.from_list([row | {"as_continued": " " + row["reference"]} for row in questions]),
        [setting.judge, setting.reward, stages.closed_right],
        tokenizer=AutoTokenizer.from_pretrained(setting.policy),
        references_column="as_continued",
        max_completion_length=stages.COMPLETION_LENGTH,
        batch_size=64,
        seed=setting.seed,
    )
    names = {f"reward/{name}": name for name in ("judge", "reward")} | {"reward/closed_right": "right"}
    names |= {name: name for name in ("perplexity", "distinct_2", "length")}
    return {ours: looked.summary[name] for name, ours in names.items()}


def run(arm: str, options: dict, setting: Setting, folder: Path, args: argparse.Namespace) -> dict:
    """One arm on one seed: its points, and how long it took."""
    budget = None if args.table else args.budget
    probe, start = Probe(setting, budget), time.perf_counter()
    trainer = (ppo_trainer if arm == "PPO" else self_trainer)(arm, options, setting, folder, args)
    probe.trainer = trainer
    trainer.add_callback(probe)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return {"points": probe.points, "seconds": time.perf_counter() - start}


def ppo_trainer(arm: str, options: dict, setting: Setting, folder: Path, args: argparse.Namespace) -> PPOTrainer:
    questions = sample_questions(setting.world, held_out=False, count=12800, seed=setting.seed)
    config = PPOConfig(
        **on_cpu(folder, setting.seed),
        max_completion_length=stages.COMPLETION_LENGTH,
        per_device_train_batch_size=64,
        max_steps=4 * 200,
        lr_scheduler_type="constant",
        learning_rate=3e-4,
        beta=0.02,
        include_num_input_tokens_seen="all",
    )
    return PPOTrainer(str(setting.policy), setting.reward, config, Dataset.from_list(questions))


def self_trainer(arm: str, options: dict, setting: Setting, folder: Path, args: argparse.Namespace):
    is_rest = arm.startswith(("ReST", "G ="))
    given = {"temperature": args.temperature, "beta": args.beta}
    given |= {} if is_rest else {"importance_clip": args.raft_plus_plus}
    if "random_selection" in options and args.raft_plus_plus is None:  # as many are drawn whatever they rank
        given["beta"] = None
    settings = {
        **on_cpu(folder, setting.seed),
        "max_completion_length": stages.COMPLETION_LENGTH,
        "per_device_train_batch_size": 32,
        "learning_rate": LEARNING_RATE,
        "num_generations": args.k,
        "num_stages": args.grow_steps,
        "stage_batch_size": 512,
        "level_stages": 0,
        **{name: value for name, value in given.items() if value is not None},
        **options,
    }
    trainer, config = (ReSTTrainer, ReSTConfig) if is_rest else (RAFTTrainer, RAFTConfig)
    rows = sft_rows(setting.world, count=4096, seed=setting.seed)
    return trainer(str(setting.policy), setting.reward, config(**settings), Dataset.from_list(rows))


def results(arms: dict, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Of each arm one result per seed, run where it is not in the folder."""
    found: dict[str, list[dict]] = {arm: [] for arm in arms}
    made_with = flags(args, LEFT_OUT + (("budget",) if args.table else ()))
    for seed in args.seeds:
        folder = args.output_dir / f"seed-{seed}"
        for arm, options in arms.items():
            file = folder / f"{arm}.json"
            if not file.is_file():
                setting = prepare(folder, seed)
                work = folder / "runs" / f"{arm} {time.time_ns()}"
                write_result(file, run(arm, options, setting, work, args), made_with)
                print(f"seed {seed}, {arm}: {summary(read_result(file, made_with))}", flush=True)
            found[arm].append(read_result(file, made_with))
    return found


def summary(result: dict) -> str:
    last = result["points"][-1]
    return ", ".join(f"{name} {last[name]:.2f}" for name in MEASURES) + f"; {result['seconds']:.0f} s"


def print_table(found: dict[str, list[dict]], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("", *MEASURES.values()):
        table.add_column(column, justify="right" if column else "left")
    start = [result["points"][0] for result in next(iter(found.values()))]
    table.add_row("after SFT", *(mean_and_deviation([point[name] for point in start]) for name in MEASURES))
    for arm, runs in found.items():
        last = [result["points"][-1] for result in runs]
        table.add_row(arm, *(mean_and_deviation([point[name] for point in last]) for name in MEASURES))
    Console(width=160).print(table)


def print_differences(found: dict[str, list[dict]], other: str = "RAFT, local") -> None:
    """Each arm's judge's score less another's, within seeds."""
    for arm in found if other in found else ():
        pairs = zip(found[arm], found[other], strict=True)
        differences = [a["points"][-1]["judge"] - b["points"][-1]["judge"] for a, b in pairs]
        if arm != other:
            print(f"judge, within seeds: {arm} − {other}: {mean_and_deviation(differences)}")


def draw(found: dict[str, list[dict]], path: Path) -> None:
    """Judge and training score against cost, one panel per arm: hacking is where the score goes up and another down."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, -(-len(found) // 2), figsize=(4 * -(-len(found) // 2), 7), sharex=True, sharey=True)
    for axis, (arm, runs) in zip(axes.flat, found.items(), strict=False):
        for name, color in (("reward", "tab:orange"), ("judge", "tab:blue")):
            for i, result in enumerate(runs):
                cost, values = ([point[key] for point in result["points"]] for key in ("cost", name))
                label = MEASURES[name] if i == 0 else None
                axis.plot(cost, values, color=color, alpha=0.7, label=label, marker=".")
        twin = axis.twinx()
        for i, result in enumerate(runs):
            cost, values = ([point[key] for point in result["points"]] for key in ("cost", "right"))
            twin.plot(
                cost, values, color="tab:green", alpha=0.4, linestyle=":", label=MEASURES["right"] if not i else None
            )
        twin.set_ylim(0, 1)
        axis.set_title(arm)
        axis.grid(alpha=0.3)
    handles = [handle for axis in (axes.flat[0], twin) for handle in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="upper center", ncols=3)
    figure.supxlabel(MEASURES["cost"])
    figure.supylabel("mean score of answers to held-out questions")
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("self_training"))
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="five, for the other tables three")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--table", choices=list(TABLES), help="vary K, or the number of Grow steps")
    parser.add_argument("--budget", type=float, default=6e5, help="token passes per run")
    parser.add_argument("--k", type=int, default=8, help="completions per prompt")
    parser.add_argument(
        "--temperature", type=float, help="of RAFT's and ReST's sampling; each method's own unless given"
    )
    parser.add_argument("--beta", type=float, help="price of KL in the ranking key")
    parser.add_argument("--grow-steps", type=int, default=100, help="stages at most")
    parser.add_argument("--raft-plus-plus", type=float, metavar="EPSILON", help="RAFT++'s clip; RAFT arms only")
    args = parser.parse_args()
    args.seeds = args.seeds or list(range(3 if args.table else 5))
    quiet()
    arms = TABLES[args.table] if args.table else {arm: ARMS[arm] for arm in args.arms}
    found = results(arms, args)
    print_table(found, f"Held-out questions, {len(args.seeds)} seeds")
    print_differences(found)
    picture = args.output_dir / f"{args.table or 'arms'}.png"
    draw(found, picture)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    main()
