"""Two processes must take the step that one takes, also where their lists have unequal numbers of pairs."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_imitation_reward_trainer import config, logged, pairs, trainer_of, weights
from test_ranked_lists import lists
from test_soft_labels import soft
from two_processes import run_in_two

from trl_ext.reward_modeling.pair_batches import PlainPairs, RankedLists, SoftPairs, first_rows
from trl_ext.trainer_kit.counted_once import counted_rows

STEP = {"imitation_coef": 1.0, "max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
STEP |= {"center_rewards_coefficient": 0.1, "per_device_eval_batch_size": 2}
SHOWN = ("ranking_loss", "imitation_loss")
COUNTED = ("eval_loss", "eval_ranking_loss", "eval_accuracy", "eval_margin", "eval_mean_reward", "eval_imitation_loss")
DATA = {"pairs": pairs, "lists": lists, "soft labels": lambda: soft([0.9, 0.2, 0.5, 1.0], pairs())}
SCRIPT = """
import json, sys
from two_processes import leave
from test_preference_processes import COUNTED, DATA, SHOWN, STEP, logged, trainer_of, config
from tiny import byte_tokenizer

folder, kind = sys.argv[1:]
options = STEP | dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, ddp_backend="gloo")
data = DATA[kind]()
held_out = data.select(range(5))
trainer = trainer_of(folder, byte_tokenizer(), args=config(folder, **options), train_dataset=data, eval_dataset=held_out)
trainer.train()
trainer.save_model(folder)
held_out = trainer.evaluate()
if trainer.is_world_process_zero():
    found = {name: logged(trainer, name)[0] for name in SHOWN} | {name: held_out[name] for name in COUNTED}
    print("found", json.dumps(found))
leave()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", DATA)
def test_two_processes_step_like_one(tmp_path, tokenizer, kind):
    """Two times two rows hold five only if three are there twice: an evaluation counts them once."""
    data = DATA[kind]()
    args = config(tmp_path, per_device_train_batch_size=8, **STEP | {"per_device_eval_batch_size": 4})
    one = trainer_of(tmp_path, tokenizer, args=args, train_dataset=data, eval_dataset=data.select(range(5)))
    one.train()
    held_out = one.evaluate()
    one.args.per_device_eval_batch_size = 2  # the imitation term is a mean over the tokens of a process's batch
    held_out["eval_loss"] = one.evaluate()["eval_loss"]
    script = tmp_path / "step.py"
    script.write_text(SCRIPT)
    done = run_in_two(script, tmp_path, kind)
    assert done.returncode == 0, done.stderr[-3000:]
    (said,) = [line.removeprefix("found ") for line in done.stdout.splitlines() if line.startswith("found")]
    found = json.loads(said)
    torch.testing.assert_close(load_file(tmp_path / "model.safetensors"), weights(one), atol=1e-6, rtol=1e-4)
    for name in ("imitation_loss", "ranking_loss"):
        assert found[name] == pytest.approx(logged(one, name)[0], rel=1e-4), name
    for name in COUNTED:
        assert found[name] == pytest.approx(held_out[name], rel=1e-4), name


def test_first_rows_by_hand():
    pairs = {
        "input_ids": torch.arange(6),
        "margin": torch.arange(3),
        "use_cache": False,
    }  # three chosen, three rejected
    found = first_rows(pairs, 2)
    assert {name: value.tolist() for name, value in found.items()} == {"input_ids": [0, 1, 3, 4], "margin": [0, 1]}
    lists = {
        "input_ids": torch.arange(5),
        "list_of": torch.tensor([0, 1, 0, 1, 0]),
        "num_prompt_tokens": torch.arange(2),
    }
    found = first_rows(lists, 1)
    assert [value.tolist() for value in found.values()] == [[0, 2, 4], [0, 0, 0], [0]]


class Padded:
    """What accelerate says to the first of two processes, whose last batches of four have `real` rows together."""

    process_index, device, num_processes = 0, "cpu", 2

    gather = staticmethod(lambda ours: ours)

    def __init__(self, real: int):
        self.real = real

    def gather_for_metrics(self, ours):
        return torch.cat([ours, torch.ones_like(ours)])[: self.real]


@pytest.mark.parametrize(("real", "own"), [(8, 4), (5, 4), (3, 3)])
def test_rows_that_are_counted(real, own):
    assert counted_rows(4, Padded(real)) == (own, real < 8)


def test_measures_of_counted_rows_by_hand():
    rewards = torch.tensor([3.0, 1.0, 5.0, 1.0, 2.0, 0.0])  # three chosen ones, three rejected ones
    expected = {"accuracy": (1, 2), "margin": (1, 2), "mean_reward": (7, 4)}  # of two
    assert {k: (a.item(), b.item()) for k, (a, b) in PlainPairs().measures(rewards, 2).items()} == expected
    soft_ones = SoftPairs(torch.tensor([0.1, 0.1, 0.9])).measures(rewards, 2)
    assert {k: (a.item(), b.item()) for k, (a, b) in soft_ones.items()} == expected  # its second pair is turned round
    assert PlainPairs().measures(rewards, None) == {}


def test_measures_of_counted_lists_by_hand():
    listed = RankedLists(torch.tensor([0, 1, 0, 1, 0]), torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0]), Padded(1))
    listed.scores = torch.tensor([[2.0], [9.0], [1.0], [0.0], [4.0]])
    rewards = listed.scores.flatten()[torch.cat([listed.better, listed.worse])]
    found = {k: (a.item(), b.item()) for k, (a, b) in listed.measures(rewards, 1).items()}
    # of the first list 2 > 1, 2 < 4, 1 < 4
    assert found == {"accuracy": (1, 3), "margin": (1 - 2 - 3, 3), "mean_reward": (7, 3)}
    assert listed.rows(rewards) == 2
