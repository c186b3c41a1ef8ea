"""A run goes on from a copy of its folder at another path, with models that have moved too; the former paths are gone."""

import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_case import KINDS, STEPS, assert_same, make, pairs, trained
from datasets import Dataset
from safetensors.torch import load_file
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import TrainerCallback


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.step


def made(kind: str, machine: Path, stop_at: int, **options):
    """A trainer of which everything is below `machine`: base, reward or value model, and output."""
    base, reward = str(machine / "base"), str(machine / "reward")
    parts = {"callbacks": [StopAt(stop_at)]}
    parts |= {
        "ppo": {"reward_funcs": reward, "value_model": reward},
        "raft": {"reward_funcs": reward},
        "reward": {"imitation_head": base},
    }[kind]
    return make(kind, machine / "run", model=reward if kind == "reward" else base, parts=parts, **options)


@pytest.fixture
def machine(tmp_path):
    machine, tokenizer = tmp_path / "machine", byte_tokenizer()
    for name, model in (("base", tiny_llama(tokenizer)), ("reward", tiny_reward_model(tokenizer))):
        model.save_pretrained(machine / name)
        tokenizer.save_pretrained(machine / name)
    return machine


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapter"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_has_moved(machine, kind, lora):
    shutil.copytree(machine, machine.parent / "unmoved")
    whole = made(kind, machine.parent / "unmoved", STEPS, lora=lora, save_total_limit=1)
    whole.train()
    made(kind, machine, 3, lora=lora, save_total_limit=1).train()
    shutil.copytree(machine, machine.parent / "elsewhere", copy_function=shutil.copyfile)  # also with other times
    shutil.rmtree(machine)
    shutil.rmtree(machine.parent / "unmoved")
    resumed = made(kind, machine.parent / "elsewhere", STEPS, lora=lora, save_total_limit=1)
    assert resumed._newest_checkpoint() == str(machine.parent / "elsewhere" / "run" / "checkpoint-3")
    resumed.train(resume_from_checkpoint=True)
    assert_same(trained(whole), trained(resumed))


def test_the_best_weights_of_a_run_that_has_moved(tmp_path):
    """The best checkpoint was written at the former path, and no later one is better."""
    options = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    options |= {"learning_rate": 0.3, "lr_scheduler_type": "constant"}  # which makes later ones worse

    def run(folder, stop_at):
        parts = {"callbacks": [StopAt(stop_at)], "eval_dataset": pairs().select(range(4))}
        return make("reward", folder, parts=parts, **options)

    whole = run(tmp_path / "whole", STEPS)
    whole.train()
    best = Path(whole.state.best_model_checkpoint)
    assert best.name != f"checkpoint-{STEPS}"
    shutil.copytree(tmp_path / "whole", tmp_path / "moved")
    shutil.rmtree(tmp_path / "whole")
    moved = run(tmp_path / "moved", STEPS)
    moved.train(resume_from_checkpoint=True)
    saved = load_file(tmp_path / "moved" / best.name / "model.safetensors")
    assert moved.state.best_model_checkpoint == str(tmp_path / "moved" / best.name)
    assert all(torch.equal(weight, saved[name]) for name, weight in moved.model.state_dict().items() if name in saved)


def test_the_best_weights_of_an_improve_are_found_by_name(machine):
    """RAFT keeps them in the run's folder, and its table names them without a path."""
    held_out = Dataset.from_dict({"prompt": ["where?", "when?"]})
    options = {"keep_best": True, "eval_strategy": "steps", "eval_steps": 1}

    def run(folder, stop_at):
        parts = {"callbacks": [StopAt(stop_at)], "eval_dataset": held_out}
        return make("raft", folder, parts=parts, **options)

    whole = run(machine / "whole", STEPS)
    whole.train()
    run(machine / "stopped", 3).train()
    (machine / "stopped").rename(machine / "moved")
    resumed = run(machine / "moved", STEPS)
    resumed.train(resume_from_checkpoint=True)
    assert_same(trained(whole), trained(resumed))
