"""Is the critic worth it? PPO against TRL's GRPOTrainer and RLOOTrainer, at equal time.

    python -m examples.benchmarks.ppo.vs_grpo_rloo --output-dir ppo_vs                       # the demo's world, five seeds
    python -m examples.benchmarks.ppo.vs_grpo_rloo --output-dir ppo_vs_sentiment --budget 10 --every 2 \\
        --task sentiment --model MODEL --pairs PAIRS.jsonl      # MODEL, PAIRS: see sentiment.py
    …  --tune        the runs on one extra seed that settings were chosen by

All arms have one start, one reward model, batches of 64 completions, a constant learning rate, β = 0.02, and the same
time on the clock: CPU seconds of the process, which has one thread, looks left out. PPO charges for KL in the reward,
in deviations of the score, RLOO in units of score, GRPO in its loss, as TRL has them. KL spent is measured by one
function for all, on held-out prompts, to the start.

Every method was tuned as much on each task: two learning rates, with 1 and with 4 epochs over each batch, on one seed
that is not in the table. All variants of a method use what ends with the most held-out reward less the price of its
KL, β deviations of the start's scores per nat: what PPO maximises.

Memory is the most bytes of live tensors at one time in two batches of rollouts from the start, weights, optimizer and
reward model included, without what is inside kernels, in a run of its own.
"""

import argparse
import time
from pathlib import Path
from statistics import mean

from rich.console import Console
from torch import nn
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from examples.benchmarks.common.live_bytes import LiveBytes
from examples.benchmarks.common.quiet_runs import on_cpu, quiet
from examples.benchmarks.ppo.ablation import WARM_UP, ppo_trainer
from examples.benchmarks.ppo.picture import draw
from examples.benchmarks.ppo.report import difference_table, main_table
from examples.benchmarks.ppo.runs import BATCH, Looks, add_flags, result_file, results, train, write_result
from examples.benchmarks.ppo.tasks import ContinuedReward, Task, demo_task, sentiment_task
from trl_ext import PPOTrainer

PPO = "PPO (head)"
BETA = 0.02
ARMS = {
    PPO: {"method": "PPO", "value_model": None, "critic_warmup_rollouts": 0},
    "PPO (value model)": {"method": "PPO", "value_model": "reward", "critic_warmup_rollouts": WARM_UP},
    "GRPO, K = 4": {"method": "GRPO", "num_generations": 4},
    "GRPO, K = 8": {"method": "GRPO", "num_generations": 8},
    "RLOO, K = 4": {"method": "RLOO", "num_generations": 4},
}
TUNED = {  # by `--tune`: see its output
    "demo": {
        "PPO": {"learning_rate": 3e-4, "num_iterations": 4},
        "GRPO": {"learning_rate": 3e-4, "num_iterations": 4},
        "RLOO": {"learning_rate": 1e-3, "num_iterations": 1},
    },
    "sentiment": {name: {"learning_rate": 1e-3, "num_iterations": 1} for name in ("PPO", "GRPO", "RLOO")},
}
TUNING = {
    f"{arm}, rate {rate}, {epochs} epochs": ARMS[arm] | {"learning_rate": rate, "num_iterations": epochs}
    for arm in (PPO, "GRPO, K = 4", "RLOO, K = 4")
    for rate in (3e-4, 1e-3)
    for epochs in (1, 4)
}
TUNING_SEED = 100
OTHERS = {"GRPO": (GRPOTrainer, GRPOConfig), "RLOO": (RLOOTrainer, RLOOConfig)}


def trainer_of(options: dict, task: Task, folder: Path):
    """The trainer of an arm: ours, or TRL's as it comes, but for `options`."""
    method, options = options["method"], {name: value for name, value in options.items() if name != "method"}
    if method == "PPO":
        return ppo_trainer(options, task, folder)
    trainer, config = OTHERS[method]
    fields = on_cpu(folder, task.seed) | {
        "max_completion_length": task.tokens,
        "per_device_train_batch_size": BATCH,
        "max_steps": 100_000,
        "lr_scheduler_type": "constant",
        "beta": BETA,
    }
    reward = ContinuedReward(task.reward, task.tokenizer())
    return trainer(str(task.start), reward, config(**fields | options), task.prompts)


def task_of(args: argparse.Namespace, seed: int) -> Task:
    folder = args.output_dir / f"seed-{seed}"
    if args.task == "demo":
        return demo_task(folder, seed)
    return sentiment_task(folder, seed, model=args.model, pairs=args.pairs)


def run(args: argparse.Namespace, arm: str, seed: int) -> None:
    """One arm on one seed, to its file: its learning, or with `--kind memory` its memory."""
    method = (ARMS | TUNING)[arm]["method"]
    options = TUNED[args.task][method] | (ARMS | TUNING)[arm]
    task, folder = task_of(args, seed), args.output_dir / f"seed-{seed}" / "runs" / f"{arm} {time.time_ns()}"
    if args.kind == "memory":
        result = {"bytes": peak_bytes(options, task, folder)}
    else:
        result = train(trainer_of(options, task, folder), Looks(task, budget=args.budget, every=args.every))
        last = result["points"][-1]
        shown = ", ".join(f"{name} {value:.2f}" for name, value in last.items())
        print(f"seed {seed}, {arm}: {shown}; {result['seconds']:.0f} s", flush=True)
    write_result(result_file(args.output_dir, arm, seed, args.kind), result, args)


def peak_bytes(options: dict, task: Task, folder: Path) -> int:
    """Most bytes of live tensors in two batches of rollouts."""
    options = options | {"max_steps": 2 * options["num_iterations"]}
    if options.get("critic_warmup_rollouts"):
        options["critic_warmup_rollouts"] = 1  # the policy learns from the second
    with LiveBytes() as live:
        trainer = trainer_of(options, task, folder)
        live.watch(tensor for model in models_of(trainer) for tensor in (*model.parameters(), *model.buffers()))
        live.watch(task.reward.module.parameters())
        trainer.train()
    return live.peak


def models_of(trainer) -> list[nn.Module]:
    """The policy, the reference and what the critic is."""
    critic = [trainer.critic.module] if isinstance(trainer, PPOTrainer) else []
    return [trainer.model, trainer.ref_model, *critic]


def memory_table(found: dict[str, list[dict]], console: Console) -> None:
    for arm, runs in found.items():
        console.print(f"{arm}: {mean(run['bytes'] for run in runs) / 2**20:.0f} MiB", highlight=False)


def tuning_table(found: dict[str, list[dict]], console: Console, *, kl: float) -> None:
    main_table(found, "Held-out prompts, one seed", console, kl=kl)
    for arm, (result,) in found.items():
        console.print(f"{arm}: reward less the price of KL {objective(result):.2f}", highlight=False)


def objective(result: dict) -> float:
    """Held-out reward at the end less β · KL, which is in deviations of the start's scores."""
    first, last = result["points"][0], result["points"][-1]
    return last["reward"] - BETA * first["deviation"] * last["kl"]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--task", choices=list(TUNED), default="demo")
    parser.add_argument("--model", help="a small causal LM, for the sentiment task")
    parser.add_argument("--pairs", type=Path, help="pairs of reviews, for the sentiment task")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--tune", action="store_true", help=f"compare settings on seed {TUNING_SEED}")
    parser.add_argument("--kind", choices=["", "memory"], default="", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.task == "sentiment" and not (args.model and args.pairs):
        parser.error("--task sentiment needs --model and --pairs")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    quiet()
    if args.only:
        return run(args, args.only[0], int(args.only[1]))
    console = Console(record=True, width=240)
    if args.tune:
        args.seeds = [TUNING_SEED]
        return tuning_table(results(TUNING, args), console, kl=args.at_kl)
    arms = {arm: ARMS[arm] for arm in args.arms}
    found = results(arms, args)
    main_table(found, f"Held-out prompts, {len(args.seeds)} seeds, {args.budget:.0f} s each", console, kl=args.at_kl)
    if PPO in found:
        difference_table(found, PPO, console, kl=args.at_kl)
    args.seeds = args.seeds[:1]
    memory_table(results(arms, args, kind="memory"), console)
    console.save_text(str(args.output_dir / "table.txt"))
    draw(found, args.output_dir / f"{args.task}.png")


if __name__ == "__main__":
    main()
