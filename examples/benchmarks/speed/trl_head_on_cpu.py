"""TRL's fused vocabulary head on a CPU, by the width of its tiles: alone beside plain logits, and in a step of PPO.

    python -m examples.benchmarks.speed.trl_head_on_cpu                                # the head alone
    python -m examples.benchmarks.speed.trl_head_on_cpu --words 500 32000 --positions 2560
    python -m examples.benchmarks.speed.trl_head_on_cpu --step --prompt-tokens 16 128  # PPO, of which it is a part

CPU seconds of one process with one thread, forward and backward, the median of runs in turns. The head has a hidden size
of 320, as in the 20M model of `ppo_vs_trl_1_12.py`, and a frozen weight, as under an adapter; 640 positions are 8 prompts
of 16 tokens with 64 new ones. The step is a rollout of 8 completions and 4 epochs over it, with that model and its reward.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import transformers
from datasets import disable_progress_bars
from rich.console import Console
from rich.table import Table
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils

from examples.benchmarks.speed.arm_trl_ext import trainer_for
from examples.benchmarks.speed.meter import CLOCKS, Meter
from examples.benchmarks.speed.work import SPEED, make_speed_work
from trl_ext import PPOTrainer
from trl_ext.trainer_kit import head_tiles

HIDDEN, WORDS = 320, (500, 32_000, 262_144)
TRLS = 32_768  # words of a tile
TILES = (TRLS, 8192, 2048, 1024, 512, 256)
BATCH = 8
KINDS = {
    "TRL's tiles": (TRLS, False),
    "ours": (head_tiles.CPU_TILE, False),
    "labelled only": (head_tiles.CPU_TILE, True),
}

Head = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, nargs="+", default=WORDS, help="Sizes of the vocabulary.")
    parser.add_argument("--positions", type=int, default=640)
    parser.add_argument("--step", action="store_true", help="Measure a step of PPO in place of the head.")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[16])
    parser.add_argument("--size", choices=("tiny", "20M", "100M"), default="20M")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    disable_progress_bars()
    table = table_of_steps(args) if args.step else table_of_heads(args)
    Console(width=110).print(table)


def table_of_heads(args: argparse.Namespace) -> Table:
    heads = {"plain logits": plain} | {f"tiles of {tile} words": fused(tile) for tile in TILES}
    table = Table("words", "", "forward, s", "backward, s", "× TRL's speed", title=f"{args.positions} positions")
    for words in args.words:
        turns = [
            {name: seconds(head, words, args.positions) for name, head in heads.items()} for _ in range(args.repeats)
        ]
        middle = {
            name: [statistics.median(x) for x in zip(*(turn[name] for turn in turns), strict=True)] for name in heads
        }
        base = sum(middle[f"tiles of {TRLS} words"])
        for name, (forward, backward) in middle.items():
            table.add_row(
                f"{words:,}", name, f"{forward:.3f}", f"{backward:.3f}", f"{base / (forward + backward):.2f}"
            )
        table.add_section()
    return table


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log p of the targets from logits that are held."""
    logits = hidden @ weight.T
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)


def fused(tile: int) -> Head:
    """The same by TRL's function, as GRPO calls it."""

    def head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, tile, None, 1.0, ("log_probs", "entropy")
        )[0]

    return head


def seconds(head: Head, words: int, positions: int) -> tuple[float, float]:
    """Of one forward and one backward pass, the weight frozen as under an adapter."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, HIDDEN, generator=generator).requires_grad_()
    weight = 0.02 * torch.randn(words, HIDDEN, generator=generator)
    targets = torch.randint(words, (positions,), generator=generator)
    start = time.process_time()
    log_probs = head(hidden, weight, targets)
    middle = time.process_time()
    log_probs.sum().backward()
    return middle - start, time.process_time() - middle


def table_of_steps(args: argparse.Namespace) -> Table:
    table = Table(
        "prompt, tokens", "", "CPU s a step", "× TRL's speed", title=f"PPO, {args.size}, {BATCH} completions"
    )
    for prompt_tokens in args.prompt_tokens:
        with tempfile.TemporaryDirectory() as folder:
            trainer = step_trainer(Path(folder), args.size, prompt_tokens)
            turns = [{kind: step_seconds(trainer, kind) for kind in KINDS} for _ in range(1 + args.repeats)][1:]
        base, *_ = KINDS
        for kind in KINDS:
            spent = statistics.median(turn[kind] for turn in turns)
            ratio = statistics.median(turn[base] / turn[kind] for turn in turns)
            table.add_row(str(prompt_tokens), kind, f"{spent:.2f}", f"{ratio:.2f}")
        table.add_section()
    return table


def step_trainer(folder: Path, size: str, prompt_tokens: int) -> PPOTrainer:
    """The benchmark's, its optimizer made, in training."""
    work = make_speed_work(folder / "work", size, prompt_tokens=prompt_tokens, prompts=BATCH)
    task = SPEED | {"folder": str(work), "output_dir": str(folder / "run"), "critic": "head", "rollouts": 1}
    trainer = trainer_for(task | {"batch": BATCH, "micro_batch": BATCH}, Meter(CLOCKS["cpu"]))
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def step_seconds(trainer: PPOTrainer, kind: str) -> float:
    """Of a rollout and the epochs over it."""
    torch.manual_seed(0)
    start = time.process_time()
    with head_of(kind):
        rollout = trainer._generate_and_score_completions(list(trainer.train_dataset))
        for _ in range(trainer.args.num_iterations):
            trainer._compute_loss(trainer.model, rollout).backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
    return time.process_time() - start


@contextmanager
def head_of(kind: str) -> Iterator[None]:
    """Inside the block TRL's head has that kind's tiles; or, as on a GPU, projects positions with a label only, too."""
    tile, labelled_only = KINDS[kind]
    with ExitStack() as changes:
        changes.enter_context(patch.object(head_tiles, "CPU_TILE", tile))
        if labelled_only:
            changes.enter_context(patch.object(utils, "_use_triton", lambda device: True))  # decides on positions only
        yield


if __name__ == "__main__":
    main()
