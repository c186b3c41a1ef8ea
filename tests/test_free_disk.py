"""A disk without room is named before the work."""

import errno
import os
import shutil
from types import SimpleNamespace

import pytest
from peft import LoraConfig, get_peft_model
from self_training_case import trainer
from tiny import byte_tokenizer, tiny_llama
from torch import nn

from trl_ext.trainer_kit.free_disk import check_free_disk, checkpoint_bytes


def settings(**changes) -> SimpleNamespace:
    return SimpleNamespace(**{"save_only_model": False, "optim": "adamw_torch"} | changes)


def test_a_checkpoints_bytes():
    model = nn.Linear(3, 5)  # 20 numbers of 4 bytes
    assert checkpoint_bytes(model, settings()) == 80 + 160
    assert (
        checkpoint_bytes(model, settings(save_only_model=True)) == checkpoint_bytes(model, settings(optim="sgd")) == 80
    )
    model.weight.requires_grad_(False)
    assert checkpoint_bytes(model, settings()) == 80 + 40


def test_of_an_adapter_only_its_own():
    model = get_peft_model(tiny_llama(byte_tokenizer()), LoraConfig(r=2, target_modules="all-linear"))
    assert checkpoint_bytes(model, settings()) == 3 * 4 * model.get_nb_trainable_parameters()[0]


def test_a_full_disk_is_refused_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    check_free_disk(tmp_path / "not" / "yet", 1000, call="run(…)")
    with pytest.raises(OSError, match=r"run\(…\): what is saved takes at least 2.00 GiB, and the disk has 0.00 GiB"):
        check_free_disk(tmp_path / "not" / "yet", 2 * 2**30, call="run(…)")
    one = trainer(tmp_path / "run", num_stages=1, save_strategy="epoch")
    with pytest.raises(OSError, match=r"RAFTTrainer.train, output_dir '.*run': what is saved takes") as raised:
        one.train()
    assert raised.value.errno == errno.ENOSPC and not os.path.exists(tmp_path / "run" / "grow-000")
    trainer(tmp_path / "unsaved", num_stages=1, save_strategy="no").train()
