"""A step of PPO with rows of like length in its micro-batches, beside TRL's micro-batches.

    python -m examples.benchmarks.speed.like_lengths

CPU seconds of one process with one thread: the pass for the old log-probabilities and values, the reference's, and the
epochs over a batch of rollouts, sampling and scoring left out. `as TRL's`: each row among all columns of the batch;
`cut`: each micro-batch among its own columns; `ordered, cut`: what PPOTrainer does. The turns alternate. Lengths of prompts
and completions are drawn evenly from a range, or all the same.
"""

import argparse
import random
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from datasets import disable_progress_bars
from rich.console import Console
from rich.table import Table
from torch import Tensor

from examples.benchmarks.speed.arm_trl_ext import trainer_for
from examples.benchmarks.speed.meter import CLOCKS, Meter
from examples.benchmarks.speed.work import SPEED, make_speed_work
from trl_ext import PPOTrainer
from trl_ext.trainer_kit.overrides import replaced

LENGTHS = {"8 to 64": (8, 64), "all 64": (64, 64)}
KINDS = ("as TRL's", "cut", "ordered, cut")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "20M", "100M"), default="20M")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    disable_progress_bars()
    title = f"PPO, {args.size}, batch {args.batch} in micro-batches of {args.micro_batch}, {SPEED['epochs']} epochs"
    table = Table("prompts, completions", "", "CPU s", "tokens computed", "× TRL's speed", title=title)
    with tempfile.TemporaryDirectory() as folder:
        trainer = step_trainer(Path(folder), args)
        for name, lengths in LENGTHS.items():
            rollout = rollout_of(trainer, args.batch, *lengths)
            turns = [{kind: seconds(trainer, rollout, kind) for kind in KINDS} for _ in range(1 + args.repeats)][1:]
            for kind in KINDS:
                spent = statistics.median(turn[kind][0] for turn in turns)
                ratio = statistics.median(turn[KINDS[0]][0] / turn[kind][0] for turn in turns)
                share = turns[0][kind][1] / turns[0][KINDS[0]][1]
                table.add_row(name, kind, f"{spent:.2f}", f"{share:.2f}", f"{ratio:.2f}")
    Console(width=110).print(table)


def step_trainer(folder: Path, args: argparse.Namespace) -> PPOTrainer:
    work = make_speed_work(folder / "work", args.size, prompt_tokens=16, prompts=args.batch)
    task = SPEED | {"folder": str(work), "output_dir": str(folder / "run"), "critic": "head", "rollouts": 1}
    trainer = trainer_for(task | {"batch": args.batch, "micro_batch": args.micro_batch}, Meter(CLOCKS["cpu"]))
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = args.batch // args.micro_batch
    trainer.model.train()
    return trainer


def rollout_of(trainer: PPOTrainer, rows: int, shortest: int, longest: int) -> dict[str, Tensor]:
    """Prompts and completions of random tokens, and random numbers of what PPO learns from."""
    source = random.Random(0)
    mask = torch.zeros(2, rows, longest, dtype=torch.long)
    for row in range(rows):
        mask[0, row, longest - source.randint(shortest, longest) :] = 1
        mask[1, row, : source.randint(shortest, longest)] = 1
    ids = torch.randint(3, trainer.model.config.vocab_size, mask.shape) * mask
    learned = {name: torch.randn(rows, longest) for name in ("advantages", "values", "returns")}
    rollout = {"prompt_ids": ids[0], "prompt_mask": mask[0], "completion_ids": ids[1], "completion_mask": mask[1]}
    return rollout | learned | {"tool_mask": mask[1], "num_items_in_batch": mask[1].sum()}


def seconds(trainer: PPOTrainer, rollout: dict[str, Tensor], kind: str) -> tuple[float, int]:
    """CPU seconds of the passes and the epochs, and tokens of the micro-batches."""
    args, start = trainer.args, time.process_time()
    with kind_of(trainer, kind), torch.no_grad():
        ids, mask = (
            torch.cat([rollout[f"{part}_{x}"] for part in ("prompt", "completion")], 1) for x in ("ids", "mask")
        )
        size, length = args.per_device_train_batch_size, rollout["completion_ids"].size(1)
        trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, length, batch_size=size)
        old = {"old_per_token_logps": trainer._evaluate_policy(rollout)[0]}
        batches = trainer._split(rollout | old, args.steps_per_generation)
    for batch in batches * args.num_iterations:
        trainer._compute_loss(trainer.model, batch).backward()
    trainer.optimizer.zero_grad()
    return time.process_time() - start, sum(
        batch["prompt_ids"].numel() + batch["tool_mask"].numel() for batch in batches
    )


@contextmanager
def kind_of(trainer: PPOTrainer, kind: str):
    """Inside the block micro-batches are of that kind."""

    def whole(rollout, rows):
        return {name: tensor[rows] if tensor.ndim else tensor for name, tensor in rollout.items()}

    changes = {} if kind == "ordered, cut" else {"_order_matters": lambda: True}
    with replaced(trainer, **changes, **({"_cut": whole} if kind == "as TRL's" else {})):
        yield


if __name__ == "__main__":
    main()
