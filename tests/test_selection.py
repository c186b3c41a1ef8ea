import numpy as np
import pytest

from trl_ext.self_training import selection

SCORES = np.array([0.1, 0.9, 0.5, 0.4, 0.4, 0.3])
PROMPTS = np.array([0, 0, 0, 1, 1, 1])


def rows(mask) -> list[int]:
    return np.flatnonzero(mask).tolist()


def test_best_per_prompt_keeps_all_that_share_the_highest_score():
    assert rows(selection.best_per_prompt(SCORES, PROMPTS)) == [1, 3, 4]


def test_best_of_k_is_one_per_prompt_and_ties_go_to_the_first():
    everything = np.ones(6, dtype=bool)
    assert rows(selection.at_most_per_prompt(everything, SCORES, PROMPTS, count=1)) == [1, 3]
    assert rows(selection.at_most_per_prompt(everything, SCORES, PROMPTS, count=2)) == [1, 2, 3, 4]


def test_top_of_the_stage_may_leave_a_prompt_without_any():
    assert rows(selection.best_overall(SCORES, acceptance_ratio=1 / 3)) == [1, 2]  # two of six; prompt 1 has none


def test_top_of_the_stage_breaks_ties_by_order():
    assert rows(selection.best_overall(np.array([1.0, 1.0, 1.0, 0.0]), acceptance_ratio=0.5)) == [0, 1]


def test_top_of_the_stage_keeps_at_least_one():
    assert rows(selection.best_overall(SCORES, acceptance_ratio=0.01)) == [1]


def test_threshold_is_strict():
    assert rows(selection.above_threshold(SCORES, threshold=0.4)) == [1, 2]


def test_percentile_is_of_the_prompts_own_scores():
    # prompt 0: median of .1 .5 .9 is .5; prompt 1: of .3 .4 .4 it is .4
    assert rows(selection.above_percentile(SCORES, PROMPTS, percentile=50)) == [1, 2, 3, 4]
    assert rows(selection.above_percentile(SCORES, PROMPTS, percentile=100)) == [1, 3, 4]
    assert rows(selection.above_percentile(SCORES, PROMPTS, percentile=0)) == list(range(6))


def test_interpolation_between_mean_and_maximum():
    # prompt 0: max .9, mean .5: τ = .5 + .4 γ; prompt 1: max .4, mean 11/30 = .367: τ = .367 + .033 γ
    assert rows(selection.above_interpolation(SCORES, PROMPTS, gamma=0.0)) == [1, 2, 3, 4]
    assert rows(selection.above_interpolation(SCORES, PROMPTS, gamma=0.25)) == [1, 3, 4]
    assert rows(selection.above_interpolation(SCORES, PROMPTS, gamma=1.0)) == [1, 3, 4]


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_interpolation_keeps_all_of_a_prompt_whose_scores_are_alike(gamma):
    """γ · max + (1 − γ) · mean may round above the scores it is made of."""
    alike = np.full(7, 0.1)
    assert selection.above_interpolation(alike, np.zeros(7, dtype=int), gamma=gamma).all()


@pytest.mark.parametrize("percentile", [0.0, 33.3, 70.0, 100.0])
def test_percentile_keeps_all_of_a_prompt_whose_scores_are_alike(percentile):
    assert selection.above_percentile(np.full(7, 0.1), np.zeros(7, dtype=int), percentile=percentile).all()


def test_random_control_keeps_as_many_of_each_prompt():
    keep = np.array([True, True, False, False, False, True])
    drawn = selection.random_of_same_size(keep, PROMPTS, seed=3)
    assert drawn[:3].sum() == 2 and drawn[3:].sum() == 1
    assert rows(drawn) == rows(selection.random_of_same_size(keep, PROMPTS, seed=3))
    others = [rows(selection.random_of_same_size(keep, PROMPTS, seed=seed)) for seed in range(20)]
    assert any(other != rows(drawn) for other in others)


def test_random_control_does_not_look_at_scores():
    """Over many draws every sample of a prompt is kept as often as any other."""
    keep = selection.at_most_per_prompt(np.ones(6, dtype=bool), SCORES, PROMPTS, count=1)
    counts = sum(selection.random_of_same_size(keep, PROMPTS, seed=seed).astype(int) for seed in range(900))
    assert (abs(counts - 300) < 60).all()


def test_prompts_whose_samples_score_alike_are_found():
    assert rows(selection.varied_prompts(np.array([1.0, 1.0, 0.0, 1.0, 2.0]), np.array([0, 0, 1, 1, 2]))) == [2, 3]


PER_PROMPT = {
    "local": lambda scores: selection.at_most_per_prompt(np.ones(6, dtype=bool), scores, PROMPTS, count=1),
    "all the best": lambda scores: selection.best_per_prompt(scores, PROMPTS),
    "percentile": lambda scores: selection.above_percentile(scores, PROMPTS, percentile=60),
    "interpolation": lambda scores: selection.above_interpolation(scores, PROMPTS, gamma=0.5),
}


@pytest.mark.parametrize("name", PER_PROMPT)
def test_a_shift_per_prompt_changes_no_selection_within_prompts(name):
    shifted = SCORES + np.where(PROMPTS == 0, -8.0, 4.0)
    assert rows(PER_PROMPT[name](shifted)) == rows(PER_PROMPT[name](SCORES))


def test_a_shift_per_prompt_does_change_the_global_selection():
    shifted = SCORES + np.where(PROMPTS == 0, -8.0, 4.0)
    assert rows(selection.best_overall(shifted, acceptance_ratio=1 / 3)) == [3, 4]


@pytest.mark.parametrize("name", [*PER_PROMPT, "global"])
@pytest.mark.parametrize("scale", [0.25, 8.0])
def test_a_positive_scale_changes_no_ranking(name, scale):
    select = PER_PROMPT.get(name, lambda scores: selection.best_overall(scores, acceptance_ratio=1 / 3))
    assert rows(select(SCORES * scale)) == rows(select(SCORES))


@pytest.mark.parametrize("name", PER_PROMPT)
def test_the_order_of_prompts_does_not_matter(name):
    """The samples of a prompt need not stand together, and prompts may have any numbers."""
    order = np.array([3, 0, 4, 1, 5, 2])
    calls = {
        "local": lambda s, p: selection.at_most_per_prompt(np.ones(6, dtype=bool), s, p, count=1),
        "all the best": selection.best_per_prompt,
        "percentile": lambda s, p: selection.above_percentile(s, p, percentile=60),
        "interpolation": lambda s, p: selection.above_interpolation(s, p, gamma=0.5),
    }
    straight = calls[name](SCORES, PROMPTS)
    mixed = calls[name](SCORES[order], (PROMPTS[order] + 1) * 7)
    assert mixed.tolist() == straight[order].tolist()


def test_no_samples_keep_none():
    nothing, none = np.array([]), np.array([], dtype=int)
    assert len(selection.best_per_prompt(nothing, none)) == 0
    assert len(selection.best_overall(nothing, acceptance_ratio=0.5)) == 0
    assert len(selection.above_percentile(nothing, none, percentile=50)) == 0
    assert len(selection.above_interpolation(nothing, none, gamma=0.5)) == 0
    assert len(selection.first_of_each([])) == 0
