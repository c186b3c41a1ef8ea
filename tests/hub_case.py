"""A hub that is a folder: what a trainer pushes to it."""

import shutil
from concurrent.futures import Future
from functools import partial

import pytest
from huggingface_hub import HfApi
from transformers import Trainer


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """What is pushed, by its path in the repository."""

    def upload_folder(self, *, folder_path, path_in_repo="", ignore_patterns=(), **kwargs):
        skip = shutil.ignore_patterns(*ignore_patterns) if ignore_patterns else None
        target = tmp_path / "hub" / path_in_repo
        if path_in_repo:
            shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder_path, target, ignore=skip, dirs_exist_ok=True)
        done = Future()
        done.set_result(None)
        return done

    def init_hf_repo(self, token=None):
        self.hub_model_id, self.push_in_progress = "me/run", None

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    older = partial(upload_folder, None)  # as some versions of transformers call it
    monkeypatch.setattr("transformers.trainer.upload_folder", older, raising=False)
    monkeypatch.setattr(Trainer, "init_hf_repo", init_hf_repo)
    return tmp_path / "hub"
