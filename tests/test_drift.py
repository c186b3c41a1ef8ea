"""Once KL to the sampling policy has passed its limit, a rollout's remaining steps cost and move nothing."""

import pytest
import torch
from ppo_case import logged, ppo_trainer
from tiny import byte_tokenizer, tiny_reward_model
from transformers import TrainerCallback

from trl_ext.ppo.drift import PolicyDrift


def test_by_hand():
    drift = PolicyDrift(limit=0.1)
    drift.add(0.05)
    drift.add(0.1)
    drift.end_step()
    assert not drift.over  # the mean of its micro-batches, .075
    drift.add(0.11)
    drift.end_step()
    assert drift.over and drift.skipped == 0
    drift.end_step()
    assert drift.skipped == 1
    drift.begin_rollout()
    assert not drift.over and drift.skipped == 1


def test_without_a_limit_it_is_never_over():
    drift = PolicyDrift()
    drift.add(1e9)
    drift.end_step()
    assert not drift.over


class Snapshots(TrainerCallback):
    """After each step: all weights, all optimizer state, and how many passes the policy and the critic have made."""

    def __init__(self):
        self.taken, self.passes = [], 0

    def watch(self, trainer):
        self.trainer = trainer
        for module in (trainer.model, trainer.critic.module):
            module.register_forward_hook(lambda *args: setattr(self, "passes", self.passes + 1))

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        tensors = [p.detach().clone() for p in (*self.trainer.model.parameters(), *self.trainer.critic.parameters())]
        tensors += [v.clone() for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
        self.taken.append((tensors, self.passes))


@pytest.mark.parametrize("critic", ["head", "model"])
def test_skipped_steps_move_nothing(tmp_path, critic):
    watch = Snapshots()
    model = tiny_reward_model(byte_tokenizer()) if critic == "model" else None
    trainer = ppo_trainer(
        tmp_path, max_policy_kl=0.0, num_iterations=4, max_steps=8, callbacks=[watch], value_model=model,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, weight_decay=0.1,
    )  # fmt: skip
    watch.watch(trainer)
    trainer.train()
    for start in (0, 4):
        # step 1: KL is 0, nothing to stop for; step 2 sees that step 1 moved; steps 3 and 4 are skipped
        _, second, third, fourth = watch.taken[start : start + 4]
        assert second[1] == third[1] == fourth[1]
        assert all(torch.equal(a, b) for a, b in zip(second[0], fourth[0], strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(watch.taken[start][0], second[0], strict=True))
    assert trainer.rollouts.drift.skipped == 4
    assert logged(trainer, "skipped_steps") == [0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 3.0, 4.0]


def test_a_wide_limit_changes_nothing(tmp_path):
    def weights(name, **options):
        trainer = ppo_trainer(tmp_path / name, max_steps=4, **options)
        trainer.train()
        assert trainer.rollouts.drift.skipped == 0
        return [p.detach() for p in trainer.model.parameters()]

    pairs = zip(weights("without"), weights("with", max_policy_kl=1e9), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_it_is_resumed_inside_a_rollout(tmp_path):
    options = {"max_policy_kl": 0.0, "num_iterations": 4, "max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    whole = ppo_trainer(tmp_path, **options)
    whole.train()
    resumed = ppo_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))  # between two skipped steps
    assert resumed.rollouts.drift.skipped == whole.rollouts.drift.skipped == 2
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_bad_limits(tmp_path):
    with pytest.raises(ValueError, match=r"max_policy_kl=-1\.0\): it must be in"):
        ppo_trainer(tmp_path, max_policy_kl=-1.0)
