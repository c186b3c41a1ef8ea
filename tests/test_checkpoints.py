import json
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from trl_ext.trainer_kit.checkpoints import ResumableTrainer, newest_complete_checkpoint


def checkpoint(folder, step, state='{"global_step": 1}', files=("optimizer.pt",)):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    for name in files:
        torch.save({}, path / name)
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return str(path)


def test_newest_that_is_complete(tmp_path):
    good = checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 8)
    checkpoint(tmp_path, 10, state=None)  # killed before the last file
    checkpoint(tmp_path, 11, state='{"global_step": 1')  # killed while writing it
    checkpoint(tmp_path, 12, files=())
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_complete_checkpoint(tmp_path, ("optimizer.pt",)) == good
    assert newest_complete_checkpoint(tmp_path / "nowhere") is None


def test_a_failing_run_saves_its_state(tmp_path):
    class Failing:
        class state:
            log_history: ClassVar = [1, 2]

        accelerator = None
        args = SimpleNamespace(output_dir=tmp_path)
        callback_handler = SimpleNamespace(callbacks=[])

        def add_callback(self, callback): ...

        def remove_callback(self, callback): ...

        def train(self, resume_from_checkpoint=None):
            raise KeyError("reward server is gone")

        def save_state(self):
            (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [1, 2]}))

    class Trainer(ResumableTrainer, Failing):
        def _open(self, resume):
            return None

    with pytest.raises(KeyError, match="reward server is gone"):
        Trainer().train()
    assert json.loads((tmp_path / "trainer_state.json").read_text()) == {"log_history": [1, 2]}


@pytest.mark.parametrize("given", [3, 1.5, ["checkpoint-1"]])
def test_a_checkpoint_that_is_no_path(given):
    with pytest.raises(ValueError, match=r"expected True, None or the path of a checkpoint, got (int|float|list)"):
        ResumableTrainer().train(given)
