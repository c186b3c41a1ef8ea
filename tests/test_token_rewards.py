import math

import pytest
import torch

from trl_ext.ppo.token_rewards import kl_per_token, last_own_token, token_rewards


def test_kl_by_hand():
    log_probs, ref = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    # k1 = log π − log π_ref = 0.5, −1;  k3 = e^{−k1} − 1 + k1 = e^{−0.5} − 0.5, e − 2
    torch.testing.assert_close(kl_per_token(log_probs, ref), torch.tensor([[0.5, -1.0]]))
    k3 = torch.tensor([[math.exp(-0.5) - 0.5, math.e - 2]])
    torch.testing.assert_close(kl_per_token(log_probs, ref, estimator="k3"), k3)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_both_estimators_are_unbiased(estimator):
    torch.manual_seed(0)
    p, q = torch.randn(2, 6).log_softmax(-1)
    exact = (p.exp() * (p - q)).sum()
    mean = (p.exp() * kl_per_token(p, q, estimator=estimator)).sum()  # over all tokens that can be sampled
    torch.testing.assert_close(mean, exact)


def test_equal_policies_have_exactly_no_kl():
    log_probs = torch.randn(2, 3)
    for estimator in ("k1", "k3"):
        assert kl_per_token(log_probs, log_probs, estimator=estimator).abs().max() == 0.0


def test_rewards_by_hand():
    scores = torch.tensor([2.0, -1.0, 7.0])
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.4, 9.0, 0.5], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 0]])  # padded; foreign token inside; no token at all
    expected = [[-0.05, 2 - 0.1, 0.0], [-0.2, 0.0, -1 - 0.25], [0.0, 0.0, 0.0]]  # β = 0.5
    torch.testing.assert_close(token_rewards(scores, kl, mask, beta=0.5), torch.tensor(expected))


def test_score_is_paid_once():
    mask = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1]])
    assert last_own_token(mask).sum(1).tolist() == [1, 1]
    rewards = token_rewards(torch.tensor([3.0, 4.0]), torch.zeros(2, 5), mask, beta=0.05)
    assert rewards.sum(1).tolist() == [3.0, 4.0]
