import pytest
import torch

from trl_ext.rewards.weighted_rewards import weighted_scores

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
