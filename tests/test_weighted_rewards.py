from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from trl_ext.rewards.weighted_rewards import check_weights, weighted_scores

NAN = float("nan")


def test_by_hand():
    rewards = torch.tensor([[1.0, 4.0], [2.0, NAN], [NAN, 6.0], [NAN, NAN]])
    # 1·1 + .5·4 = 3;  1·2 = 2;  .5·6 = 3;  none
    scores = weighted_scores(rewards, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(scores, torch.tensor([3.0, 2.0, 3.0, NAN]), equal_nan=True)


def test_what_is_only_watched_scores_nothing():
    rewards = torch.tensor([[NAN, 4.0], [2.0, 4.0]])
    scores = weighted_scores(rewards, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(scores, torch.tensor([NAN, 2.0]), equal_nan=True)
    with pytest.raises(ValueError, match="no reward function scored any of the 1 completions"):
        weighted_scores(rewards[:1], torch.tensor([1.0, 0.0]))


def test_a_score_beyond_all_numbers():
    with pytest.raises(ValueError, match=r"of row 1 is beyond the largest number"):
        weighted_scores(torch.tensor([[1.0], [1e30]]), torch.tensor([1e30]))


@pytest.mark.parametrize(
    "weights", [None, [1.0, 0], (-1, 0.5), [np.float32(1.0), Decimal("0.5")], [True, Fraction(1, 2)]]
)
def test_good_weights(weights):
    check_weights(weights, 2, given="A")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([NAN, 1.0], "A: expected finite numbers, got nan"),
        ([1.0, float("inf")], "got inf"),
        ([1.0, 1e300], r"got 1e\+300"),
        ([1.0, "2"], "got '2'"),
        ([1.0, None], "got None"),
        ([0.0, 0], "A: expected one that is not 0"),
        ([1.0], r"A: expected one per reward function \(2\), got 1"),
        ([], r"one per reward function \(2\), got 0"),
        (1.0, r"A: expected a list with one number per reward function \(2\)"),
        ("11", "expected a list"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        check_weights(weights, 2, given="A")
