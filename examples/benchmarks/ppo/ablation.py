"""Which parts of PPO-max help: PPO with all of them, without one at a time, at equal time.

    python -m examples.benchmarks.ppo.ablation --output-dir ppo_ablation                       # six arms, five seeds
    python -m examples.benchmarks.ppo.ablation --output-dir ppo_ablation --arms "PPOConfig's defaults"    # one beside:
        PPOConfig's critic, a detached head from the first rollout on

On the demo's world (see equal_cost.py): the policy after SFT is paid by a reward model, and judged by another one
that has learned from pairs about the other half of the world. All of PPO-max (Secrets of RLHF I, arXiv:2307.04964):
scores scaled by their running mean and deviation, a value model that starts as the reward model and learns alone for
three batches of rollouts, clipped value loss, GAE, whitened advantages, clipped gradients, KL in each token's reward.

Every arm has the same time on the clock (CPU seconds of its process, which has one thread, looks left out), so
a cheaper arm makes more rollouts. A run whose results are in the folder is not run again, so two shells may share the
seeds (`--seeds`).
"""

import argparse
import time
from pathlib import Path

from rich.console import Console

from examples.benchmarks.common.quiet_runs import on_cpu, quiet
from examples.benchmarks.ppo.report import difference_table, main_table
from examples.benchmarks.ppo.runs import BATCH, Looks, add_flags, result_file, results, train, write_result
from examples.benchmarks.ppo.tasks import Task, demo_task
from trl_ext import PPOConfig, PPOTrainer

ALL = "all of PPO-max"
WARM_UP = 3  # rollouts
ARMS = {
    ALL: {},
    "without score scaling": {"score_scaling": False},
    "without critic start and warm-up": {"value_model": "start", "critic_warmup_rollouts": 0},
    "without value clip": {"value_clip": 1e6},
    "undetached head": {"value_model": None, "detach_critic": False},
    "1 epoch": {"num_iterations": 1},
}
BESIDE = {"PPOConfig's defaults": {"value_model": None, "critic_warmup_rollouts": 0}}


def ppo_trainer(options: dict, task: Task, folder: Path) -> PPOTrainer:
    """PPO with all of PPO-max, but for `options`: fields of PPOConfig, and `value_model` 'reward', 'start' or None."""
    options = {"value_model": "reward", "critic_warmup_rollouts": WARM_UP, "learning_rate": 3e-4} | options
    value_model = {"reward": task.reward_path, "start": str(task.start), None: None}[options.pop("value_model")]
    fields = {"num_iterations": 4, "beta": 0.02, "max_steps": 100_000, "lr_scheduler_type": "constant"} | options
    config = PPOConfig(
        **on_cpu(folder, task.seed)
        | {"max_completion_length": task.tokens, "per_device_train_batch_size": BATCH}
        | {"logging_strategy": "steps", "logging_steps": fields["num_iterations"]}
        | fields
    )
    return PPOTrainer(str(task.start), task.reward, config, task.prompts, value_model=value_model)


def run(args: argparse.Namespace, arm: str, seed: int) -> None:
    """One arm on one seed, to its file."""
    folder = args.output_dir / f"seed-{seed}"
    task = demo_task(folder, seed)
    trainer = ppo_trainer((ARMS | BESIDE)[arm], task, folder / "runs" / f"{arm} {time.time_ns()}")
    result = train(trainer, Looks(task, budget=args.budget, every=args.every))
    write_result(result_file(args.output_dir, arm, seed), result, args)
    last = result["points"][-1]
    shown = ", ".join(f"{name} {value:.2f}" for name, value in last.items())
    print(f"seed {seed}, {arm}: {shown}; {result['seconds']:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *BESIDE], default=list(ARMS), metavar="ARM")
    args = parser.parse_args(arguments)
    quiet()
    if args.only:
        return run(args, args.only[0], int(args.only[1]))
    names = list(dict.fromkeys([ALL, *args.arms]))
    found, console = results(dict.fromkeys(names), args), Console(record=True, width=240)
    main_table(found, f"Held-out questions, {len(args.seeds)} seeds, {args.budget:.0f} s each", console, kl=args.at_kl)
    difference_table(found, ALL, console, kl=args.at_kl)
    console.save_text(str(args.output_dir / "table.txt"))


if __name__ == "__main__":
    main()
