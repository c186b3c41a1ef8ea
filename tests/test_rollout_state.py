"""What is kept over rollouts, by hand, and as the files of a checkpoint, whose names and keys older runs have too."""

import json

import pytest
import torch
from safetensors.torch import load_file

from trl_ext import PPOConfig
from trl_ext.ppo.rollout_state import RolloutState


def state(**options) -> RolloutState:
    settings = {"bf16": False, "report_to": "none", "per_device_train_batch_size": 4, "num_iterations": 3}
    return RolloutState(PPOConfig("unused", **settings | options))


def test_a_checkpoint_by_hand(tmp_path):
    one = state(beta=0.5)
    one.begin()
    one.score_moments.update(torch.tensor([0.0, 2.0]))
    one.ending.update(0.5)
    one.follow({"kl_per_completion": 0.25, "own_length": 4.0, "perplexity": 9.0}, completions=4)
    batches = [{"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 4.0])}]
    one.save(tmp_path, 1, step=7, batches=batches)
    assert json.loads((tmp_path / "ppo_state_1.json").read_text()) == {
        "counters": {
            "step": 7, "rollouts": 1, "per_device_train_batch_size": 4, "steps_per_generation": 1, "num_iterations": 3,
        },
        "score_moments": {"count": 2, "mean": 1.0, "squares": 2.0},
        "kl_control": {"beta": 0.5},
        "collapse": {"history": [[4.0, 9.0, 0.25]], "warned": False},
        "ending": {"rollouts": 1, "any_ended": True},
        "sampling": {"first_kl": None, "first_error": None, "first_distance": None, "lost": 0, "warned": []},
    }  # fmt: skip
    assert sorted(load_file(tmp_path / "ppo_rollouts_1.safetensors")) == ["0.a", "1.a"]

    other = state(beta=0.5)
    step, loaded = other.load(tmp_path, 1, torch.device("cpu"))
    assert (step, other.sampled) == (7, 1)
    assert [batch["a"].tolist() for batch in loaded] == [[1.0, 2.0], [3.0, 4.0]]
    for name in ("score_moments", "kl_control", "collapse", "ending"):
        assert getattr(other, name) == getattr(one, name)


def test_a_checkpoint_between_rollouts_has_none(tmp_path):
    state().save(tmp_path, 0, step=0, batches=None)
    assert state().load(tmp_path, 0, torch.device("cpu")) == (0, None)


def test_a_checkpoint_of_another_process_or_cut_otherwise(tmp_path):
    state().save(tmp_path, 0, step=0, batches=None)
    with pytest.raises(ValueError, match=r"there is no ppo_state_1.json in it"):
        state().load(tmp_path, 1, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"changed since \(then, now\): {'num_iterations': \(3, 2\)}"):
        state(num_iterations=2).load(tmp_path, 0, torch.device("cpu"))


def test_scores_are_scaled_or_not():
    scores, seen = torch.tensor([1.0, float("nan")]), torch.tensor([0.0, 4.0])
    plain, scaling = state(score_scaling=False), state(score_scaling=True)
    for each in (plain, scaling):
        each.score_moments.update(seen)  # mean 2, deviation 2
    assert plain.scaled(scores).tolist() == [1.0, 0.0] and scaling.scaled(scores).tolist() == [-0.5, 0.0]


def test_the_policy_rests_for_the_first_rollouts():
    warming = state(critic_warmup_rollouts=1)
    rests = []
    for _ in range(3):
        warming.begin()
        rests.append(warming.policy_rests())
    assert rests == [True, False, False]
