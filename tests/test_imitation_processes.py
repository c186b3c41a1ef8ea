"""Two processes must take the step that one takes: the mean is over all tokens of all of them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sharded_case import in_two
from sharded_reward_case import trained
from test_imitation_reward_trainer import config, logged, trainer_of, weights
from two_processes import run_in_two

STEP = {"imitation_coef": 1.0, "max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
SCRIPT = f"""
import sys
from two_processes import leave
from test_imitation_reward_trainer import byte_tokenizer, config, logged, trainer_of

options = {STEP} | dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, ddp_backend="gloo")
trainer = trainer_of(sys.argv[1], byte_tokenizer(), args=config(sys.argv[1], **options))
trainer.train()
trainer.save_model(sys.argv[1])
if trainer.is_world_process_zero():
    print("imitation_loss", logged(trainer, "imitation_loss")[0])
leave()
"""


def step_in_two(folder: Path, text: str = SCRIPT) -> tuple[float, dict[str, torch.Tensor]]:
    script = folder / "step.py"
    script.write_text(text)
    done = run_in_two(script, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (loss,) = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("imitation_loss")]
    return float(loss), load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_two_processes_step_like_one(tmp_path, tokenizer):
    one = trainer_of(tmp_path, tokenizer, args=config(tmp_path, per_device_train_batch_size=8, **STEP))
    one.train()
    loss, trained = step_in_two(tmp_path)
    assert loss == pytest.approx(logged(one, "imitation_loss")[0], rel=1e-5)
    torch.testing.assert_close(trained, weights(one), atol=1e-6, rtol=1e-4)


RUNS = {
    "DDP": {"adapter": {"full": False}},
    "FSDP2": {"accumulated": {"gradient_accumulation_steps": 2}, "adapter": {"full": False}},
}


def as_one_process(folder: Path, runs: dict[str, dict[str, dict]]) -> None:
    """What two processes learn, log, evaluate and save, under each engine."""
    both = in_two(folder / "two", "engines", case="sharded_reward_case", engine=next(iter(runs)), **runs)
    for name, options in {name: options for own in runs.values() for name, options in own.items()}.items():
        one = trained(folder / name, **options)
        for engine in [engine for engine, own in runs.items() if name in own]:
            of_engine = f"policy.{engine}.{name}."
            two = {key.removeprefix(of_engine): value for key, value in both.items() if key.startswith(of_engine)}
            torch.testing.assert_close(two, one, atol=2e-6, rtol=1e-5)


def test_two_processes_train_like_one(tmp_path):
    """Under FSDP2 the head is not a piece of what is cut; a run that goes on ends alike, and not under another engine."""
    as_one_process(tmp_path, RUNS)


def test_what_fsdp2_would_lose_or_round_is_refused_or_kept(tmp_path):
    in_two(tmp_path / "two", "bad_input_of_fsdp2", case="sharded_reward_case")
