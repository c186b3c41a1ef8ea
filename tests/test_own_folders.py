"""What a run writes over: its own, and nothing else."""

import os
import re
from pathlib import Path

import pytest
from self_training_case import trainer
from transformers import Trainer

from trl_ext import ImitationRewardTrainer, PPOTrainer, RAFTTrainer, ReSTTrainer
from trl_ext.trainer_kit.checkpoints import ResumableTrainer
from trl_ext.trainer_kit.output_dirs import OutputDirWatch
from trl_ext.trainer_kit.own_folders import check_is_folder, check_own_folder, claim_folder

NAMES = re.compile(r"model|numbers\.json")


def claim(folder, **run):
    claim_folder(folder, "mark.json", run, names=NAMES, call="run(…)")


def test_a_new_folder_an_empty_one_and_one_of_others(tmp_path):
    for name in ("new", "empty", "others"):
        if name != "new":
            (tmp_path / name).mkdir()
        if name == "others":
            (tmp_path / name / "models").mkdir()
        claim(tmp_path / name, seed=0)
        assert "mark.json" in os.listdir(tmp_path / name)


def test_what_is_not_marked_is_refused_by_name(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(
        ValueError, match=r"run\(…\): '.*' holds 'model', which this run did not write .* remove that your"
    ):
        claim(tmp_path, seed=0)
    assert os.listdir(tmp_path) == ["model"]


def test_what_differs_from_the_mark_is_named(tmp_path):
    claim(tmp_path, seed=0, size=2)
    (tmp_path / "model").mkdir()
    claim(tmp_path, seed=0, size=2)
    with pytest.raises(ValueError, match=r"another run has written \(seed: 0 then, 1 now; size: 2 then, None now\)"):
        claim(tmp_path, seed=1)


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_damaged_mark_is_named(tmp_path, content):
    (tmp_path / "mark.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"mark.json' (cannot be read|holds list).*whose the folder is\. Give another"
    ):
        claim(tmp_path, seed=0)


def test_to_check_writes_nothing(tmp_path):
    check_own_folder(tmp_path / "a" / "b", "mark.json", {}, names=NAMES, call="run(…)")
    assert os.listdir(tmp_path) == []
    (tmp_path / "a").touch()
    with pytest.raises(ValueError, match=r"expected a folder to write into, but '.*a' is a file"):
        check_own_folder(tmp_path / "a" / "b", "mark.json", {}, names=NAMES, call="run(…)")


def test_a_model_card_replaces_no_readme(tmp_path):
    (tmp_path / "README.md").write_text("# My project")
    one = trainer(tmp_path, num_stages=1, save_strategy="steps", save_steps=2)
    with pytest.warns(UserWarning, match=r"RAFTTrainer: '.*README.md' is not a trainer's and stays as it is"):
        one.train()
    assert (tmp_path / "README.md").read_text() == "# My project"
    (tmp_path / "README.md").unlink()
    for name in ("first", "second"):  # its own is replaced
        one.create_model_card(name)
        assert f"# Model Card for {name}" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("kind", [PPOTrainer, RAFTTrainer, ReSTTrainer, ImitationRewardTrainer])
def test_every_trainer_watches_its_folder(kind):
    assert kind.create_model_card is OutputDirWatch.create_model_card
    assert kind.__mro__.index(ResumableTrainer) < kind.__mro__.index(OutputDirWatch) < kind.__mro__.index(Trainer)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system that takes no files")
@pytest.mark.parametrize("place", ["/proc", "/proc/out", "/proc/a/b"])
def test_where_nothing_can_be_made_though_root_may(place):
    with pytest.raises(
        ValueError, match=r"^run\(…\): expected a folder to write into, but '/proc' may not be written"
    ):
        check_is_folder(Path(place), call="run(…)")
