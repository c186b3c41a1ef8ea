"""`hub_strategy="checkpoint"`: what Trainer pushes is enough to go on from, elsewhere. The hub is a folder here."""

import shutil
from pathlib import Path

import pytest
from checkpoint_case import KINDS, STEPS, assert_same, make, trained
from datasets import Dataset
from hub_case import hub  # noqa: F401 - a fixture
from transformers import TrainerCallback

OWN = {
    "ppo": {"ppo_critic.safetensors", "ppo_rollouts_0.safetensors", "ppo_state_0.json"},
    "raft": {"stage_table.json", "grow-000.parquet", "grow-001.parquet", "initial_weights.safetensors"},
    "reward": set(),
}
HELD_OUT = Dataset.from_dict({"prompt": ["where?", "when?"]})
OPTIONS = {"raft": {"beta": 0.1, "keep_best": True, "eval_strategy": "steps", "eval_steps": 1}}


class Steps(TrainerCallback):
    """Counts a run's steps, and stops it before its last one, if it should."""

    def __init__(self, stop: bool):
        self.stop, self.made = stop, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.made += 1
        control.should_training_stop |= self.stop and state.global_step >= STEPS - 1


def assert_goes_on(trainer, resume: str | bool, whole) -> None:
    """From the last step but one, and it ends like the run that was never stopped."""
    trainer.train(resume_from_checkpoint=resume)
    assert [one.made for one in trainer.callback_handler.callbacks if isinstance(one, Steps)] == [1]
    assert_same(trained(whole), trained(trainer))


def run(kind: str, folder: Path, *, stop: bool = False, push: bool = False):
    parts = {"callbacks": [Steps(stop)]} | ({"eval_dataset": HELD_OUT} if kind == "raft" else {})
    return make(kind, folder, parts=parts, push_to_hub=push, hub_strategy="checkpoint", **OPTIONS.get(kind, {}))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_pushed_is_gone_on_with(hub, tmp_path, kind):  # noqa: F811
    whole = run(kind, tmp_path / "whole")
    whole.train()
    run(kind, tmp_path / "stopped", stop=True, push=True).train()
    pushed = {path.name for path in (hub / "last-checkpoint").iterdir()}
    assert OWN[kind] | {"trl_ext_run.json", "trainer_state.json", "optimizer.pt"} <= pushed
    shutil.rmtree(tmp_path / "stopped")
    shutil.copytree(hub / "last-checkpoint", tmp_path / "alone" / "last-checkpoint")
    assert_goes_on(run(kind, tmp_path / "new"), str(tmp_path / "alone" / "last-checkpoint"), whole)
    for place in ("alone", "hub"):  # the checkpoint alone, and the repository as a whole
        assert_goes_on(run(kind, tmp_path / place), True, whole)


def test_a_fresh_run_is_not_begun_in_what_was_pushed(hub, tmp_path):  # noqa: F811
    run("reward", tmp_path / "run", stop=True, push=True).train()
    with pytest.raises(ValueError, match="holds a run already"):
        run("reward", hub).train()
