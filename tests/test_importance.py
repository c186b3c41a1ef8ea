import math

import pytest
import torch
from tiny import byte_tokenizer, tiny_llama

from trl_ext.self_training.importance import clipped_positive_loss, importance_loss
from trl_ext.sequences.log_probs import label_log_probs
from trl_ext.sequences.training_rows import collate, training_row


def test_loss_by_hand():
    log_probs = torch.tensor([[math.log(0.2), math.log(0.3), math.log(0.1)]], requires_grad=True)
    loss = clipped_positive_loss(log_probs, torch.tensor([[math.log(0.2), math.log(0.2), math.log(0.2)]]), clip=0.2)
    # ρ = 1, 1.5 and .5; −min(ρ, 1.2)
    torch.testing.assert_close(loss, torch.tensor([[-1.0, -1.2, -0.5]]))
    loss.sum().backward()
    # d(−ρ)/d log π = −ρ, nothing beyond the clip; at ρ = 1 that of −log π, i.e. of plain fine-tuning
    torch.testing.assert_close(log_probs.grad, torch.tensor([[-1.0, 0.0, -0.5]]))


def batch(shift: float) -> tuple[torch.nn.Module, dict]:
    """A model, and two rows of three completion tokens in all, which were `shift` less likely when they were sampled."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(tokenizer).eval()
    rows = [training_row([5, 6], [7]), training_row([5], [8, 9])]
    inputs = collate(rows, pad_token_id=tokenizer.pad_token_id)
    return model, inputs | {"old_log_probs": label_log_probs(model, inputs).detach() - shift}


def test_at_ratio_one_each_token_adds_minus_one():
    loss, metrics = importance_loss(*batch(0.0), clip=0.2)
    assert loss.item() == pytest.approx(-3.0) and metrics == {"ratio": pytest.approx(1.0), "clip_ratio": 0.0}


def test_beyond_the_clip_each_token_adds_its_bound_and_no_gradient():
    model, inputs = batch(math.log(2))
    loss, metrics = importance_loss(model, inputs, clip=0.5)
    assert loss.item() == pytest.approx(-4.5) and metrics == {"ratio": pytest.approx(2.0), "clip_ratio": 1.0}
    loss.backward()
    assert not model.lm_head.weight.grad.any()


@pytest.mark.parametrize("apart", [89.0, 1e4])
def test_a_ratio_beyond_all_floats_moves_nothing(apart):
    log_probs = torch.tensor([[-1.0, math.log(0.5)]], requires_grad=True)
    loss = clipped_positive_loss(log_probs, torch.tensor([[-1.0 - apart, math.log(0.5)]]), clip=0.2)
    torch.testing.assert_close(loss, torch.tensor([[-1.2, -1.0]]))
    loss.sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([[0.0, -1.0]]))
    assert math.isfinite(importance_loss(*batch(apart), clip=0.2)[1]["ratio"])
