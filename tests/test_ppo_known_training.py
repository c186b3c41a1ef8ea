"""What users of TRL's PPO met, in training and resuming: one test for each thread of huggingface/trl by its number.

The docstring's first sentence is the symptom there. Each test fails with the defect put back.
"""

import pytest
import torch
from defects_case import weights_of
from ppo_case import ppo_trainer
from tiny import byte_tokenizer, tiny_reward_model
from transformers import TrainerCallback

CHECKPOINTS = {"save_strategy": "steps", "save_steps": 1, "num_iterations": 2}


def test_gradients_are_clipped(tmp_path):
    """TRL's PPO never looked at `max_grad_norm`. Here a step of SGD is at most learning rate × norm long, of the policy
    and of the critic."""
    trainer = ppo_trainer(
        tmp_path, value_model=tiny_reward_model(byte_tokenizer(), seed=5), max_grad_norm=0.01, optim="sgd",
        learning_rate=1.0, critic_learning_rate=1.0, lr_scheduler_type="constant", max_steps=1, value_coef=10.0,
    )  # fmt: skip
    models = {"policy": trainer.model, "critic": trainer.critic.own_model}
    before = {role: weights_of(model) for role, model in models.items()}
    trainer.train()
    for role, model in models.items():
        steps = [(weight.detach() - before[role][name]).norm() for name, weight in model.named_parameters()]
        assert torch.stack(steps).norm() == pytest.approx(0.01, rel=1e-3), role


def stopped_and_resumed(folder, *, value_model=None):
    """A run that stopped after 2 of 4 steps, and the one that goes on; the critic's weights when the first stopped."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    def run():
        critic = value_model and tiny_reward_model(byte_tokenizer(), seed=5)
        return ppo_trainer(folder, value_model=critic, max_steps=4, **CHECKPOINTS)

    first, second = run(), run()
    first.add_callback(Stop())
    first.train()
    left = [parameter.detach().clone() for parameter in first.critic.parameters()]
    return first, second, left


def found_at_the_start(trainer) -> dict:
    """Train on from the newest checkpoint; what there was when the first step began."""
    found = {}

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            found.setdefault("step", state.global_step)
            found.setdefault("critic", [parameter.detach().clone() for parameter in trainer.critic.parameters()])
            found.setdefault("moments", len(trainer.optimizer.state))

    trainer.add_callback(Look())
    trainer.train(resume_from_checkpoint=True)
    return found


def test_trl_2657_resuming_goes_on(tmp_path):
    """Resuming from a checkpoint did not work: PPO's `train()` took none and began at 0. Here it goes on at step 2."""
    first, second, _ = stopped_and_resumed(tmp_path)
    found = found_at_the_start(second)
    assert found["step"] == 2 and second.state.global_step == 4
    assert [entry["step"] for entry in second.state.log_history if "score" in entry or "loss" in entry][:2] == [1, 2]
    assert found["moments"] == len(first.optimizer.state) > 0


@pytest.mark.parametrize("value_model", [None, "of its own"], ids=["trl_1650_head", "trl_3293_value_model"])
def test_trl_1650_and_3293_the_critic_comes_back(tmp_path, value_model):
    """1650: "no v_head weight is found" when PPO was resumed; 3293: the value model was in no checkpoint, so a resumed
    run went on with another critic. Here either is saved and loaded with its optimizer state."""
    _, second, left = stopped_and_resumed(tmp_path, value_model=value_model)
    fresh = [parameter.detach().clone() for parameter in second.critic.parameters()]
    found = found_at_the_start(second)
    assert all(torch.equal(*pair) for pair in zip(found["critic"], left, strict=True))
    assert any(not torch.equal(*pair) for pair in zip(fresh, left, strict=True))
    moments = {id(p): second.optimizer.state[p] for p in second.critic.parameters()}
    assert all(moments.values())
