"""Two processes must take the step that one takes: the mean is over all tokens of all of them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_imitation_reward_trainer import config, logged, trainer_of, weights
from tiny import byte_tokenizer
from torch import nn
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


SHARDED = f"""
from cpu_sharding import shard_on_cpu
from test_imitation_processes import own_head
from torch.distributed.fsdp import FSDPModule

shard_on_cpu()
{SCRIPT.replace("**options)", "use_cpu=False, **options), imitation_head=own_head()").replace("leave()", "")}
assert isinstance(trainer.model, FSDPModule)
leave()
"""


def own_head() -> nn.Linear:
    """A vocabulary head that is not the model's."""
    torch.manual_seed(3)
    return nn.Linear(16, len(byte_tokenizer()), bias=False)


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


def test_two_processes_that_share_the_weights_step_like_one(tmp_path, tokenizer):
    """Under FSDP2, where the head is not a piece of what is cut."""
    args = config(tmp_path, per_device_train_batch_size=8, **STEP)
    one = trainer_of(tmp_path, tokenizer, args=args, imitation_head=own_head())
    one.train()
    loss, trained = step_in_two(tmp_path, SHARDED)
    assert loss == pytest.approx(logged(one, "imitation_loss")[0], rel=1e-5)
    torch.testing.assert_close(trained, weights(one), atol=1e-6, rtol=1e-4)


REFUSED = """
import os
import sys
import pytest
from accelerate.state import AcceleratorState
from cpu_sharding import FSDP2, shard_on_cpu
from test_imitation_processes import STEP, own_head
from test_imitation_reward_trainer import byte_tokenizer, config, trainer_of
from two_processes import leave

shard_on_cpu()
for name, value, message in [
    ("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT", "save_model would write no weights. Set it to FULL_STATE_DICT"),
    ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params=true: it was never tried"),
]:
    os.environ.update(FSDP2 | {name: value})
    AcceleratorState._reset_state()
    args = config(sys.argv[1], use_cpu=False, **STEP)
    with pytest.raises(ValueError, match="ImitationRewardTrainer under FSDP2 with .*" + message):
        trainer_of(sys.argv[1], byte_tokenizer(), args=args, imitation_head=own_head())
print("refused")
leave()
"""


def test_settings_under_which_nothing_would_be_saved_are_refused(tmp_path):
    script = tmp_path / "refused.py"
    script.write_text(REFUSED)
    done = run_in_two(script, tmp_path)
    assert done.returncode == 0 and done.stdout.count("refused") == 2, done.stderr[-3000:]
