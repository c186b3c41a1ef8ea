"""Statistics of pairs, by hand."""

from math import log, sqrt

import numpy as np
import pytest

from trl_ext.reward_evaluation.pair_statistics import (
    bootstrap_error,
    calibration_error,
    calibration_sums,
    confidences,
    correlation,
    held_out_gaps,
    log_losses,
    logistic_fit,
    reliability,
    same_sign_correlation,
    unit_size,
    verdicts,
    wilson_interval,
)

HALF = log(0.75 / 0.25)  # σ = ¾


def test_wilson_by_hand():
    # p = ½, n = 4, z² = 3.8416: middle (½ + .4802) / 1.9604 = ½, half 1.96 √(.0625 + .06003) / 1.9604 = .3499
    assert wilson_interval(0.5, 4) == pytest.approx((0.1501, 0.8499), abs=1e-4)
    low, high = wilson_interval(1.0, 10)
    assert high == pytest.approx(1.0) and low == pytest.approx(10 / (10 + 1.96**2))
    ends = [wilson_interval(share, count) for share in (0.0, 1.0) for count in range(1, 100)]
    assert all(low >= 0 and high <= 1 for low, high in ends)  # of 5 of 5 rows rounding alone gives 1.0000000000000002


def test_wilson_covers_as_often_as_it_says():
    share, count = 0.3, 60
    drawn = np.random.default_rng(0).binomial(count, share, 4000) / count
    covered = np.mean([low <= share <= high for low, high in (wilson_interval(each, count) for each in drawn)])
    assert 0.93 < covered < 0.97


def sums_of(gaps: np.ndarray) -> np.ndarray:
    return calibration_sums(confidences(gaps), verdicts(gaps), np.ones(len(gaps)))


def test_calibration_by_hand():
    gaps = np.array([HALF, HALF, -HALF, HALF, 0.0])  # confidence ¾ four times, three right; and a tie
    assert confidences(gaps) == pytest.approx([0.75, 0.75, 0.75, 0.75, 0.5])
    totals = sums_of(gaps + 1e-9 * np.sign(gaps)).sum(0)
    assert [tuple(each) for each in reliability(totals)] == [
        pytest.approx((1, 0.5, 0.5)),  # a tie is half right, and half sure
        pytest.approx((4, 0.75, 0.75)),
    ]
    assert calibration_error(totals) == pytest.approx(0.0, abs=1e-6)
    wrong = sums_of(-np.array([HALF, HALF]) - 1e-9).sum(0)
    assert calibration_error(wrong) == pytest.approx(0.75)  # sure by ¾, and never right


def test_a_reward_turned_around_is_as_sure_and_as_often_wrong():
    gaps = np.random.default_rng(0).normal(size=50)
    ours, turned = (reliability(sums_of(sign * gaps).sum(0)) for sign in (1, -1))
    for one, other in zip(ours, turned, strict=True):
        assert one.confidence == pytest.approx(other.confidence) and one.right == pytest.approx(1 - other.right)


def test_verdicts_and_log_losses():
    assert verdicts(np.array([3.0, -0.1, 0.0])).tolist() == [1.0, 0.0, 0.5]
    assert log_losses(np.array([0.0, 1000.0, -1000.0])).tolist() == [log(2), 0.0, 1000.0]
    assert log_losses(np.array([HALF]))[0] == pytest.approx(-log(0.75))


def test_correlations_against_numpys():
    random = np.random.default_rng(0)
    a, b = random.normal(size=40), random.normal(size=40)
    rows = np.stack([np.ones(40), a, b, a * b, a * a, b * b], 1)
    assert correlation(rows.sum(0)) == pytest.approx(np.corrcoef(a, b)[0, 1])
    signs = random.choice([-1, 1], 40)  # which of a pair comes first does not matter
    sums = [np.stack([x * y, x * x, y * y], 1).sum(0) for x, y in ((a, b), (signs * a, signs * b))]
    assert same_sign_correlation(sums[0]) == pytest.approx(same_sign_correlation(sums[1]))
    assert np.isnan(correlation(np.array([2.0, 2.0, 3.0, 3.0, 2.0, 5.0])))  # a never varies


def test_bootstrap_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(1).normal(size=80)
    sums = np.stack([values, np.ones(80)], 1)
    error = bootstrap_error(lambda totals: totals[..., 0] / totals[..., 1], sums, resamples=8000)
    assert error == pytest.approx(values.std(ddof=1) / sqrt(80), rel=0.03)
    assert np.isnan(bootstrap_error(lambda totals: totals[..., 0], sums[:1]))


def test_logistic_of_one_feature_by_hand():
    # x = 1 in three of four pairs, −1 in one: the share ¾ gives β = log 3, and its error 1 / √(n p (1 − p))
    beta, error = logistic_fit(np.array([[1.0], [1.0], [1.0], [-1.0]]).repeat(500, 0), np.ones(2000))
    assert beta[0] == pytest.approx(log(3), abs=1e-3)
    assert error[0] == pytest.approx(1 / sqrt(2000 * 0.75 * 0.25), rel=1e-3)


def test_logistic_finds_what_made_the_labels():
    random = np.random.default_rng(0)
    features = random.normal(size=(5000, 2))
    chance = 1 / (1 + np.exp(-features @ [0.5, -1.0]))
    features *= np.where(random.random(5000) < chance, 1, -1)[:, None]  # the chosen one first
    beta, error = logistic_fit(features, np.ones(5000))
    assert np.abs(beta - [0.5, -1.0]).max() < 3 * error.max() < 0.2
    assert log_losses(held_out_gaps(features, np.ones(5000), np.arange(5000))).mean() < log(2) - 0.1


def test_logistic_stays_finite_where_a_feature_parts_all_pairs():
    beta, error = logistic_fit(np.ones((20, 1)), np.ones(20))
    assert 3 < beta[0] < 20 and error[0] > 1


def test_held_out_gaps_gain_nothing_from_noise():
    random = np.random.default_rng(3)
    noise = random.normal(size=(60, 1))
    assert log_losses(held_out_gaps(noise, np.ones(60), np.arange(60))).mean() > log(2) - 0.01


def test_rows_of_a_fold_are_held_out_whole():
    """A row's own pairs have no part in its fit: row 0 alone is large and would pull."""
    features, rows = np.array([[9.0], [9.0], [-1.0], [-1.0], [-1.0], [-1.0], [-1.0]]), np.array([0, 0, 1, 2, 3, 4, 5])
    gaps = held_out_gaps(features, np.ones(7), rows, folds=6)
    assert gaps[0] < 0 and gaps[1] < 0  # by the others, more is worse


def test_unit_size():
    assert unit_size(np.array([3.0, -4.0]), np.ones(2)).tolist() == [3 / sqrt(12.5), -4 / sqrt(12.5)]
    assert unit_size(np.zeros(2), np.ones(2)).tolist() == [0.0, 0.0]
