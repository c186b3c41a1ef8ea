import pytest
import torch

from trl_ext.ppo.score_scaling import RunningMoments


def test_batches_give_the_moments_of_all_scores():
    scores = torch.randn(50) * 3 + 20
    moments = RunningMoments()
    for batch in scores.split([1, 9, 40]):
        moments.update(batch)
    assert moments.count == 50
    assert moments.mean == pytest.approx(scores.mean().item(), rel=1e-6)
    assert moments.deviation == pytest.approx(scores.std(correction=0).item(), rel=1e-5)


def test_scaled_by_hand():
    moments = RunningMoments()
    moments.update(torch.tensor([1.0, 3.0]))  # mean 2, deviation 1
    assert moments.scale(torch.tensor([1.0, 4.0, 50.0, -50.0]), clip=10.0).tolist() == [-1.0, 2.0, 10.0, -10.0]


def test_equal_scores_become_0_whatever_their_rounding():
    moments = RunningMoments()
    for size in (3, 7, 10):
        moments.update(torch.full((size,), 0.1))
    assert moments.deviation == 0.0
    torch.testing.assert_close(moments.scale(torch.full((2,), 0.1), clip=10.0), torch.zeros(2))


def test_before_the_first_update_scores_are_left_alone():
    moments = RunningMoments()
    moments.update(torch.empty(0))
    assert moments.scale(torch.tensor([0.5, -3.0]), clip=10.0).tolist() == [0.5, -3.0]


def test_scale_and_shift_of_the_scores_do_not_matter():
    scores = torch.randn(20)
    plain, moved = RunningMoments(), RunningMoments()
    plain.update(scores)
    moved.update(1000 * scores - 7)
    torch.testing.assert_close(
        plain.scale(scores, clip=10.0), moved.scale(1000 * scores - 7, clip=10.0), atol=1e-4, rtol=1e-4
    )
