from functools import partial

import pytest
import torch

from trl_ext.ppo.advantages import explained_variance, generalized_advantages
from trl_ext.trainer_kit.masked import masked_variance


def test_gae_by_hand():
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 0.6, 0.8]])
    advantages, returns = generalized_advantages(rewards, values, torch.ones(1, 3), gamma=1.0, lam=0.5)
    # δ = [0 + .6 − .5, 0 + .8 − .6, 1 + 0 − .8] = [.1, .2, .2]
    # A₃ = .2,  A₂ = .2 + .5·.2 = .3,  A₁ = .1 + .5·.3 = .25
    torch.testing.assert_close(advantages, torch.tensor([[0.25, 0.30, 0.20]]))
    torch.testing.assert_close(returns, torch.tensor([[0.75, 0.90, 1.00]]))


def test_gae_equals_its_definition():
    """A_t = Σ_l (γλ)^l δ_{t+l}, summed without a recursion."""
    rewards, values = torch.randn(3, 6), torch.randn(3, 6)
    gamma, lam = 0.9, 0.7
    deltas = rewards + gamma * torch.cat([values[:, 1:], torch.zeros(3, 1)], 1) - values
    expected = torch.stack([sum((gamma * lam) ** k * deltas[:, t + k] for k in range(6 - t)) for t in range(6)], dim=1)
    advantages, _ = generalized_advantages(rewards, values, torch.ones(3, 6), gamma=gamma, lam=lam)
    torch.testing.assert_close(advantages, expected)


def test_lambda_one_is_return_minus_value():
    rewards, values = torch.randn(4, 7), torch.randn(4, 7)
    advantages, _ = generalized_advantages(rewards, values, torch.ones(4, 7), gamma=1.0, lam=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, to_go - values)


def test_lambda_zero_is_the_one_step_error():
    rewards, values = torch.randn(2, 4), torch.randn(2, 4)
    advantages, _ = generalized_advantages(rewards, values, torch.ones(2, 4), gamma=0.5, lam=0.0)
    torch.testing.assert_close(advantages[:, :-1], rewards[:, :-1] + 0.5 * values[:, 1:] - values[:, :-1])


def test_masked_tokens_change_nothing():
    """Padding after a completion, or a tool's words inside it, must not touch the policy's own advantages."""
    rewards, values, own = torch.randn(2, 4), torch.randn(2, 4), torch.ones(2, 4)
    alone, alone_returns = generalized_advantages(rewards, values, own, gamma=0.9, lam=0.8)

    def insert(tensor, filler):  # two foreign tokens after the second, one after the last
        return torch.cat([tensor[:, :2], filler(2, 2), tensor[:, 2:], filler(2, 1)], dim=1)

    junk = partial(torch.full, fill_value=float("nan"))
    mixed, mixed_returns = generalized_advantages(
        insert(rewards, lambda *size: junk(size)),
        insert(values, lambda *size: junk(size)),
        insert(own, torch.zeros),
        gamma=0.9,
        lam=0.8,
    )

    torch.testing.assert_close(mixed, insert(alone, torch.zeros))
    torch.testing.assert_close(mixed_returns, insert(alone_returns, torch.zeros))


def test_a_row_without_own_tokens_has_nothing():
    advantages, returns = generalized_advantages(torch.ones(1, 3), torch.ones(1, 3), torch.zeros(1, 3), gamma=1, lam=1)
    assert advantages.tolist() == returns.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("values", "expected"), [([[1.0, 2.0, 3.0]], 1.0), ([[5.0, 5.0, 5.0]], 0.0), ([[3.0, 2.0, 1.0]], -3.0)]
)
def test_explained_variance(values, expected):
    returns, mask = torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3)
    # returns reversed: R − V = −2, 0, 2, four times the variance of R: 1 − 4 = −3
    assert explained_variance(torch.tensor(values), returns, lambda x: masked_variance(x, mask)) == pytest.approx(
        expected
    )


def test_explained_variance_of_equal_returns_is_0():
    assert explained_variance(torch.rand(2, 2), torch.ones(2, 2), torch.var) == 0.0
