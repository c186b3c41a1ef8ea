"""Runs of PPO's benchmarks: a clock that other programs do not disturb, looks at the policy, results on disk.

The clock is the CPU time of the training process, which has one thread (`time.process_time`); looks at the policy and
what comes before the first step are left out. On a machine of its own it is the wall-clock.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from statistics import pstdev

import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, TrainerCallback

from examples.benchmarks.common import kept_results
from examples.benchmarks.ppo.tasks import Task
from trl_ext import LearnedReward, evaluate
from trl_ext.demo.stages import closed_right

BATCH = 64  # completions per batch of rollouts
ALONE = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


class Clock:
    """CPU seconds of this process since it was made; pauses do not count.

    >>> clock = Clock(now=iter([10.0, 11.0, 15.0, 16.0]).__next__)
    >>> with clock.paused():  # from 11 to 15
    ...     pass
    >>> clock.seconds
    2.0
    """

    def __init__(self, now: Callable[[], float] = time.process_time):
        self._now, self._start = now, now()

    @property
    def seconds(self) -> float:
        return self._now() - self._start

    @contextmanager
    def paused(self):
        begin = self._now()
        yield
        self._start += self._now() - begin


class Looks(TrainerCallback):
    """Answers held-out prompts between batches of rollouts, and ends the run when its time is over.

    Args:
        task: Of the seed.
        budget: Seconds of the clock.
        every: Seconds between two looks.
    """

    def __init__(self, task: Task, *, budget: float, every: float):
        self.task, self.budget, self.every = task, budget, every
        self.points: list[dict[str, float]] = []
        self.tokenizer = task.tokenizer()
        self.start = AutoModelForCausalLM.from_pretrained(task.start)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.clock = Clock()
        self._look(model, rollouts=0)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        rollouts, inside = divmod(state.global_step, args.num_iterations)
        if inside:
            return
        now = self.clock.seconds
        control.should_training_stop |= now >= self.budget
        if now >= self.budget or now >= (self.points[-1]["clock"] // self.every + 1) * self.every:
            self._look(model, rollouts)

    def _look(self, model, rollouts: int) -> None:
        now = self.clock.seconds
        with self.clock.paused():
            measures = answers_to_prompts(model, self.start, self.tokenizer, self.task)
        self.points.append({"clock": now, "rollouts": rollouts} | measures)


def answers_to_prompts(model, start, tokenizer: PreTrainedTokenizerBase, task: Task) -> dict[str, float]:
    """One answer to each held-out prompt at temperature 1, what is thought of it, and KL(π ‖ π_start) in nats."""
    columns = {name: [row.get(name) for row in task.held_out] for name in ("prompt", "attribute", "answer")}
    looked = evaluate(
        model,
        Dataset.from_dict(columns),
        [renamed(task.reward, "reward"), renamed(task.judge, "judge"), closed_right],
        tokenizer=tokenizer,
        reference=start,
        max_completion_length=task.tokens,
        batch_size=BATCH,
        seed=task.seed,
    )
    found, right = looked.summary, looked.summary["reward/closed_right"]
    return {
        "reward": found["reward/reward"],
        "deviation": pstdev(looked.samples["reward/reward"]),  # between completions
        "judge": found["reward/judge"],
        **({} if right is None else {"right": right}),
        "kl": found["kl"],
        "length": found["length"],
        "ended": found["ended_share"],
        "distinct_2": found["distinct_2"],
    }


def renamed(reward: LearnedReward, name: str) -> Callable:
    """The reward under another name, whatever its folder is called."""

    def scored(**columns) -> list[float]:
        return reward(**columns)

    scored.__name__ = name
    return scored


def train(trainer, looks: Looks) -> dict:
    """One run to the end of its time: points, what the critic foresaw at each batch of rollouts, seconds by the wall."""
    begin = time.perf_counter()
    trainer.add_callback(looks)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    foreseen = [log["explained_variance"] for log in trainer.state.log_history if "explained_variance" in log]
    return {"points": looks.points, "explained_variance": foreseen, "seconds": time.perf_counter() - begin}


# Results on disk

LEFT_OUT = ("output_dir", "seeds", "only", "arms", "kind", "at_kl")  # flags that decide no single run


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What both benchmarks are told."""
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of the clock per run")
    parser.add_argument("--every", type=float, default=5.0, help="seconds of the clock between two looks")
    parser.add_argument("--at-kl", type=float, default=3.0, help="nats per completion, at which scores are compared")
    parser.add_argument("--only", nargs=2, metavar=("ARM", "SEED"), help="one run, in this process")


def results(arms: dict, args: argparse.Namespace, *, kind: str = "") -> dict[str, list[dict]]:
    """Of each arm one result per seed; one that is not in the folder is made in a process of its own."""
    found: dict[str, list[dict]] = {arm: [] for arm in arms}
    for seed in args.seeds:
        for arm in arms:
            file = result_file(args.output_dir, arm, seed, kind)
            if not file.is_file():
                extra = ["--kind", kind] if kind else []
                command = [*sys.orig_argv, *extra, "--only", arm, str(seed)]
                subprocess.run(command, check=True, env=os.environ | ALONE)
            found[arm].append(kept_results.read_result(file, kept_results.flags(args, LEFT_OUT)))
    return found


def result_file(folder: Path, arm: str, seed: int, kind: str = "") -> Path:
    return folder / f"seed-{seed}" / f"{kind + ' ' if kind else ''}{arm}.json"


def write_result(file: Path, result: dict, args: argparse.Namespace) -> None:
    kept_results.write_result(file, result, kept_results.flags(args, LEFT_OUT))
