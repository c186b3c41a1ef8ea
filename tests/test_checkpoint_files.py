"""What resuming needs, for every trainer: whatever of it is gone or half is named, passed over or refused."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from checkpoint_case import KINDS, STEPS, assert_same, make, trained
from safetensors.torch import save_file

from trl_ext.trainer_kit.checkpoint_files import MODEL, lacks, written_by

COMMON = ["trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
OWN = {
    "ppo": ["ppo_critic.safetensors", "ppo_rollouts_0.safetensors", "ppo_state_0.json"],
    "raft": ["stage_table.json"],
    "reward": [],
}


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


HARMS = {"missing": Path.unlink, "empty": empty, "half": halve}


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    """Kind, folder and end of a run that was never stopped."""
    folder = tmp_path_factory.mktemp(request.param) / "whole"
    trainer = make(request.param, folder)
    trainer.train()
    return request.param, folder, trained(trainer)


@pytest.fixture
def moved(run, tmp_path):
    """The same, as a copy at another path that ends with its last but one checkpoint."""
    kind, folder, end = run
    shutil.copytree(folder, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / f"checkpoint-{STEPS}")
    return kind, tmp_path / "moved", end


@pytest.mark.parametrize("harm", HARMS)
def test_each_file_that_resuming_needs(moved, harm):
    kind, folder, _ = moved
    trainer, checkpoint = make(kind, folder), folder / f"checkpoint-{STEPS - 1}"
    assert trainer._problems([checkpoint]) == {checkpoint: []}
    for name in [*COMMON, *OWN[kind], "model.safetensors"]:
        content = (checkpoint / name).read_bytes()
        HARMS[harm](checkpoint / name)
        (problem,) = trainer._problems([checkpoint])[checkpoint]
        assert name in problem and ("there is no" in problem) == (harm == "missing")
        with pytest.raises(ValueError, match=rf"checkpoint-3'\): .*{name}.*not a checkpoint of \w+.* to go on with"):
            trainer.train(resume_from_checkpoint=str(checkpoint))
        (checkpoint / name).write_bytes(content)
    empty(checkpoint / "config.json")  # read only where it is there
    assert "config.json" in trainer._problems([checkpoint])[checkpoint][0]


@pytest.mark.parametrize("harm", HARMS)
def test_an_older_whole_one_is_gone_on_with(moved, harm):
    kind, folder, end = moved
    HARMS[harm](folder / f"checkpoint-{STEPS - 1}" / "optimizer.pt")
    resumed = make(kind, folder)
    with pytest.warns(UserWarning, match=r"goes on with checkpoint-2 and passes over checkpoint-3: .*optimizer\.pt"):
        resumed.train(resume_from_checkpoint=True)
    assert_same(trained(resumed), end)
    assert make(kind, folder)._newest_checkpoint() == str(folder / f"checkpoint-{STEPS}")


def test_where_all_are_damaged_none_is_taken(moved):
    kind, folder, _ = moved
    for checkpoint in folder.glob("checkpoint-*"):
        (checkpoint / "scheduler.pt").unlink()
    with pytest.raises(
        ValueError, match=r"holds no complete checkpoint\. Give .*checkpoint-3: there is no scheduler.pt"
    ):
        make(kind, folder).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_killed_in_its_first_checkpoint_begins(tmp_path, kind):
    """So a script that may be killed at any time can always pass True."""
    (tmp_path / "run").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        begun = make(kind, tmp_path / "run", save_steps=STEPS)
        begun.train(resume_from_checkpoint=True)
    (tmp_path / "run" / f"checkpoint-{STEPS}" / "trainer_state.json").unlink()
    again = make(kind, tmp_path / "run", save_steps=STEPS)
    with pytest.warns(UserWarning, match=r"begins anew and passes over checkpoint-4: there is no trainer_state.json"):
        again.train(resume_from_checkpoint=True)
    assert_same(trained(again), trained(begun))


@pytest.mark.parametrize("kind", ["ppo", "reward"])
def test_only_the_model_was_saved(tmp_path, kind):
    """Which is refused where it is gone on with, not where it is saved; RAFTConfig refuses it."""
    make(kind, tmp_path, save_only_model=True).train()
    for resume in (True, str(tmp_path / "checkpoint-4")):
        with pytest.raises(
            ValueError, match=r"no optimizer.pt in it; .*save_only_model=True, no checkpoint can"
        ) as said:
            make(kind, tmp_path, save_only_model=True).train(resume_from_checkpoint=resume)
        assert resume is not True or "no complete checkpoint. Start anew in another output_dir. " in str(said.value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapters_checkpoint(tmp_path, kind):
    whole = make(kind, tmp_path / "whole", lora=True)
    whole.train()
    shutil.copytree(tmp_path / "whole", tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "checkpoint-4")
    halve(tmp_path / "moved" / "checkpoint-3" / "adapter_model.safetensors")
    resumed = make(kind, tmp_path / "moved", lora=True)
    with pytest.warns(UserWarning, match="goes on with checkpoint-2 and passes over checkpoint-3: adapter_model"):
        resumed.train(resume_from_checkpoint=True)
    assert_same(trained(whole), trained(resumed))


def test_a_loss_scaler_is_asked_for_where_there_is_one(moved, monkeypatch):
    kind, folder, _ = moved
    trainer, checkpoint = make(kind, folder), folder / "checkpoint-3"
    monkeypatch.setattr(trainer.accelerator, "scaler", object())
    assert trainer._problems([checkpoint]) == {checkpoint: ["there is no scaler.pt in it"]}


def test_a_checkpoint_of_two_processes(moved):
    """Its batches were twice as large; a lost random state is no sign of fewer processes."""
    kind, folder, _ = moved
    checkpoint = folder / "checkpoint-3"
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    assert written_by(checkpoint) is None
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    assert written_by(checkpoint) == 2
    with pytest.raises(ValueError, match="written by 2 processes, and now their number is 1"):
        make(kind, folder).train(resume_from_checkpoint=str(checkpoint))
    with pytest.warns(
        UserWarning, match="goes on with checkpoint-2 and passes over checkpoint-3: it was written by 2"
    ):
        assert make(kind, folder)._newest_checkpoint() == str(folder / "checkpoint-2")


def test_an_older_ones_mark_is_gone_before_it_is_written_over(moved, monkeypatch):
    """Else a run that is killed while it writes would leave a mix of two that looks whole."""
    kind, folder, _ = moved
    trainer, checkpoint = make(kind, folder), folder / "checkpoint-3"
    trainer.state.global_step = 3

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_model", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer._save_checkpoint(trainer.model, None)
    assert (checkpoint / "optimizer.pt").is_file() and not (checkpoint / "trainer_state.json").exists()


# The files by hand


def whole_by_hand(folder: Path) -> Path:
    folder.mkdir()
    (folder / "trainer_state.json").write_text('{"global_step": 1}')
    for i in (1, 2):
        save_file({f"w{i}": torch.zeros(4)}, folder / f"model-0000{i}-of-00002.safetensors")
    shards = {f"w{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return folder


def test_every_shard_of_a_model(tmp_path):
    folder = whole_by_hand(tmp_path / "checkpoint-1")
    assert lacks(folder, [MODEL]) == []
    halve(folder / "model-00002-of-00002.safetensors")
    assert "its model-00002-of-00002.safetensors cannot be read" in lacks(folder, [MODEL])[0]
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "its model-00002-of-00002.safetensors cannot be read (no bytes" in lacks(folder, [MODEL])[0]
    (folder / "model.safetensors.index.json").unlink()
    assert lacks(folder, [MODEL]) == ["there is no model.safetensors in it"]


@pytest.mark.parametrize("content", ["null", "[1]", '{"global_step": 1', "", "\0" * 40])
def test_a_state_that_is_none(tmp_path, content):
    folder = whole_by_hand(tmp_path / "checkpoint-1")
    (folder / "trainer_state.json").write_text(content)
    (problem,) = lacks(folder, [MODEL])
    assert problem.startswith("trainer_state.json in it cannot be read (")


def test_a_folder_that_is_not_there(tmp_path):
    assert lacks(tmp_path / "checkpoint-1", [MODEL]) == ["there is no such folder"]
