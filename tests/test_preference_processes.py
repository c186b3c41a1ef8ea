"""Two processes must take the step that one takes, also where their lists have unequal numbers of pairs."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_imitation_reward_trainer import config, logged, pairs, trainer_of, weights
from test_ranked_lists import lists
from test_soft_labels import soft
from two_processes import run_in_two

STEP = {"imitation_coef": 1.0, "max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
STEP |= {"center_rewards_coefficient": 0.1, "per_device_eval_batch_size": 2}
SHOWN = ("ranking_loss", "imitation_loss")
DATA = {"lists": lists, "soft labels": lambda: soft([0.9, 0.2, 0.5, 1.0], pairs())}
SCRIPT = """
import json, sys
from two_processes import leave
from test_preference_processes import DATA, SHOWN, STEP, logged, trainer_of, config
from tiny import byte_tokenizer

folder, kind = sys.argv[1:]
options = STEP | dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, ddp_backend="gloo")
data = DATA[kind]()
trainer = trainer_of(folder, byte_tokenizer(), args=config(folder, **options), train_dataset=data, eval_dataset=data)
trainer.train()
trainer.save_model(folder)
held_out = trainer.evaluate()
if trainer.is_world_process_zero():
    found = {name: logged(trainer, name)[0] for name in SHOWN} | {"eval_accuracy": held_out["eval_accuracy"]}
    print("found", json.dumps(found))
leave()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", DATA)
def test_two_processes_step_like_one(tmp_path, tokenizer, kind):
    data = DATA[kind]()
    args = config(tmp_path, per_device_train_batch_size=8, **STEP)
    one = trainer_of(tmp_path, tokenizer, args=args, train_dataset=data, eval_dataset=data)
    one.train()
    script = tmp_path / "step.py"
    script.write_text(SCRIPT)
    done = run_in_two(script, tmp_path, kind)
    assert done.returncode == 0, done.stderr[-3000:]
    (said,) = [line.removeprefix("found ") for line in done.stdout.splitlines() if line.startswith("found")]
    found = json.loads(said)
    torch.testing.assert_close(load_file(tmp_path / "model.safetensors"), weights(one), atol=1e-6, rtol=1e-4)
    for name in ("imitation_loss", "ranking_loss"):
        assert found[name] == pytest.approx(logged(one, name)[0], rel=1e-4), name
    assert 0 <= found["eval_accuracy"] <= 1
