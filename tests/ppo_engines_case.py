"""PPO under each engine where it begins, samples, is killed, or is given what it cannot do:
`ppo_engines_case.py FOLDER WHAT '{"kind": "head"}' ENGINE`, where WHAT is a function below and ENGINE one of
`cpu_sharding.ENGINES`, or DDP.
"""

import faulthandler
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cpu_sharding import shard_on_cpu
from datasets import Dataset
from safetensors.torch import save_file
from table_case import TABLE, default_dtype, even_unless_short, run, table_trainer, watch_rollouts, weights
from torch import Tensor
from two_processes import leave

RANK = int(os.environ.get("RANK", 0))
SAVES = {"save_strategy": "steps", "save_steps": 1}
EVALUATED = ("eval_loss", "eval_score", "eval_kl", "eval_explained_variance", "eval_value_loss")


def evaluated_first(folder: Path, **options) -> dict[str, Tensor]:
    """Three steps, before which it evaluates: nothing has passed through the policy, or the critic, before."""
    with default_dtype(torch.float64):
        rows = Dataset.from_dict({"prompt": [*TABLE][:5]})
        trainer = table_trainer(folder, eval_dataset=rows, eval_on_start=True, **options)
        seen = watch_rollouts(trainer)
        if not trainer.critic.is_inside:  # else refused
            trainer.evaluate()
        trainer.train()
    said = {name: entry[name] for entry in reversed(trainer.state.log_history) for name in EVALUATED if name in entry}
    return seen | weights(trainer) | {name: torch.tensor(said[name], dtype=torch.float64) for name in EVALUATED}


def greedy(folder: Path, **options) -> dict[str, Tensor]:
    """Three steps of what TRL samples; of every token the likeliest, so that it does not matter which process samples."""
    with default_dtype(torch.float64):
        trainer = table_trainer(folder, rollout_func=None, top_k=1, max_completion_length=8, **options)
        seen, make = watch_rollouts(trainer), trainer._generate_and_score_completions

        def watched(inputs):
            rollout = make(inputs)
            for example, ids, mask in zip(inputs, rollout["completion_ids"], rollout["completion_mask"], strict=True):
                seen[f"{trainer.rollouts.sampled}.{example['prompt']}.tokens"] = ids[mask.bool()].clone()
            return rollout

        trainer._generate_and_score_completions = watched
        trainer.train()
    return seen | weights(trainer)


def wrote(folder: Path, **options) -> dict[str, Tensor]:
    """A checkpoint."""
    return run(folder, max_steps=1, **SAVES, **options)


def refuses(folder: Path, *, checkpoints: dict[str, str], **options) -> dict[str, Tensor]:
    """Checkpoints, each of which is said to be something else in both processes, and of another policy in none."""
    for number, (checkpoint, said) in enumerate(checkpoints.items()):
        with default_dtype(torch.float64):  # as they were written
            trainer = table_trainer(folder / str(number), **options)
        with pytest.raises((ValueError, RuntimeError), match=re.escape(said)) as error:
            trainer.train(resume_from_checkpoint=checkpoint)
        assert "model:" not in str(error.value)
    return {}


def refuses_input(folder: Path, **options) -> dict[str, Tensor]:
    """Fewer prompts than processes, and a batch of all of them that their number of samples does not divide."""
    with pytest.raises(
        ValueError, match=r"has 1 prompts, but one batch of rollouts takes 8, .*Lower per_device_train"
    ):
        table_trainer(folder, prompts=["why?"], **options)
    with pytest.raises(ValueError, match=r"generation_batch_size \(8\) must be divisible by num_generations \(3\)"):
        table_trainer(folder, num_generations=3, **options)
    return {}


def fails(folder: Path, **options) -> dict[str, Tensor]:
    """A reward that the second process cannot have."""

    def reward(completions, **columns):
        if RANK:
            raise RuntimeError("the service is away")
        return even_unless_short(completions)

    return run(folder, reward_funcs=reward, **options)


def killed(folder: Path, *, where: str, rank: int, **options) -> dict[str, Tensor]:
    """One process is gone at once in the second rollout, or with half of the second checkpoint written."""
    trainer = table_trainer(
        folder / f"{where}-{rank}", reward_funcs=_dies(where == "rollout", rank), **SAVES, **options
    )
    save = trainer._save_optimizer_and_scheduler

    def dies_half_way(output_dir):
        if where == "checkpoint" and rank == RANK and trainer.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        save(output_dir)

    trainer._save_optimizer_and_scheduler = dies_half_way
    trainer.train()
    return {}


def _dies(is_meant: bool, rank: int) -> Callable:
    calls = []

    def even(completions, **columns):
        calls.append(completions)
        if is_meant and rank == RANK and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return even_unless_short(completions)

    return even


def goes_on(folder: Path, *, runs: list[str], **options) -> dict[str, Tensor]:
    """Those that were killed, each to its end, which is that of a run that was not."""

    def to_the_end(name: str, resume: bool | None) -> dict[str, Tensor]:
        trainer = table_trainer(folder / name, reward_funcs=_dies(False, 0), **SAVES, **options)
        trainer.train(resume_from_checkpoint=resume)
        return weights(trainer)

    expected = to_the_end("whole", None)
    for name in runs:
        found = to_the_end(name, True)
        assert [weight for weight in expected if not torch.equal(found[weight], expected[weight])] == [], name
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, what, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    if sys.argv[4] == "DDP":
        faulthandler.dump_traceback_later(240, exit=True)
        options |= {"ddp_backend": "gloo", "use_cpu": True}
    else:
        shard_on_cpu(engine=sys.argv[4])
    results = globals()[what](target, **options)
    save_file(results, target / f"process-{RANK}.safetensors")
    leave()
