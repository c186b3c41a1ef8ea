import numpy as np
import pytest

from trl_ext import RAFTConfig, ReSTConfig
from trl_ext.self_training.stage_selection import Scored, mapped_scores, score_bounds, select


def scored(scores, prompts=None, *, truncated=(), duplicate=(), kl=None) -> Scored:
    count = len(scores)
    return Scored(
        prompts=np.array(prompts if prompts is not None else [0] * count),
        scores=np.array(scores, dtype=float),
        ended=np.array([i not in truncated for i in range(count)]),
        duplicate=np.array([i in duplicate for i in range(count)]),
        kl=None if kl is None else np.array(kl),
    )


def config(cls=RAFTConfig, **changes):
    return cls(output_dir="unused", bf16=False, report_to="none", **{"num_generations": 3} | changes)


def kept(samples, args, bounds=None, seed=0) -> list[int]:
    return select(samples, args, bounds=bounds, seed=seed).kept.tolist()


SIX = scored([1.0, 3.0, 2.0, 9.0, 7.0, 8.0], [0, 0, 0, 1, 1, 1])


def test_local_keeps_the_best_of_each_prompt():
    assert kept(SIX, config()) == [0, 1, 0, 1, 0, 0]


def test_local_with_a_larger_ratio_keeps_several_of_each():
    assert kept(SIX, config(acceptance_ratio=2 / 3)) == [0, 1, 1, 1, 0, 1]


def test_global_keeps_the_top_share_of_the_stage():
    assert kept(SIX, config(selection="global")) == [0, 0, 0, 1, 0, 1]  # 1/K of six is two


def test_global_keeps_its_share_of_what_was_sampled_also_where_some_is_left_out():
    samples = scored([1.0, 3.0, 2.0, 9.0, 7.0, 8.0], [0, 0, 0, 1, 1, 1], truncated=[3, 5])
    assert kept(samples, config(selection="global")) == [0, 1, 0, 0, 1, 0]


def test_one_sample_per_prompt_is_fine_tuning_on_own_samples():
    assert kept(scored([5.0, -1.0], [0, 1]), config(num_generations=1)) == [1, 1]


def test_truncated_duplicate_and_unscored_samples_are_left_out_and_counted():
    samples = scored([5.0, 4.0, np.nan, 3.0], truncated=[0, 2], duplicate=[1])
    selected = select(samples, config(), bounds=None, seed=0)
    assert selected.kept.tolist() == [0, 0, 0, 1]
    assert selected.dropped == {"unscored": 1, "truncated": 1, "duplicate": 1}  # each by its first reason


def test_what_is_dropped_can_be_kept_by_option():
    samples = scored([5.0, 6.0], [0, 1], truncated=[0], duplicate=[1])
    assert kept(samples, config(drop_truncated=False, drop_duplicates=False)) == [1, 1]


def test_prompts_whose_samples_score_alike_are_dropped_by_option():
    samples = scored([2.0, 2.0, 1.0, 3.0], [0, 0, 1, 1])
    assert kept(samples, config()) == [1, 0, 0, 1]
    selected = select(samples, config(drop_alike=True), bounds=None, seed=0)
    assert selected.kept.tolist() == [0, 0, 0, 1] and selected.dropped["alike"] == 2


def test_raft_plus_plus_keeps_all_positives_and_drops_prompts_without_a_difference():
    samples = scored([1.0, 0.0, 1.0, 1.0, 1.0], [0, 0, 0, 1, 1])
    assert kept(samples, config(importance_clip=0.2)) == [1, 0, 1, 0, 0]


def test_kl_enters_the_ranking_key():
    # keys 3 − .5·4 = 1 and 2 − .5·0 = 2
    samples = scored([3.0, 2.0], kl=[4.0, 0.0])
    assert kept(samples, config(beta=0.5)) == [0, 1]
    assert select(samples, config(beta=0.5), bounds=None, seed=0).keys.tolist() == [1.0, 2.0]
    assert kept(samples, config(beta=0.1)) == [1, 0]  # keys 2.6 and 2


def test_thresholds_nest_and_are_strict():
    # of [0, 10]: .5 .7 .71 .95 1 → above .7: 3, above .9: 2
    samples = scored([5.0, 7.0, 7.1, 9.5, 12.0])
    assert kept(samples, config(ReSTConfig, thresholds=[0.7, 0.9]), bounds=(0.0, 10.0)) == [0, 0, 1, 2, 2]


def test_at_most_so_many_per_prompt_the_best_first():
    samples = scored([0.8, 0.9, 0.85, 0.95], [0, 0, 0, 1])
    args = config(ReSTConfig, thresholds=[0.5, 0.86], max_kept_per_prompt=2)
    assert kept(samples, args, bounds=(0.0, 1.0)) == [0, 2, 1, 2]


def test_percentile_and_interpolation():
    samples = scored([0.0, 1.0, 4.0])
    # median 1; τ = .5 · 4 + .5 · 5/3 = 2.83
    assert kept(samples, config(ReSTConfig, selection="percentile", thresholds=[0.5]), bounds=None) == [0, 1, 1]
    assert kept(samples, config(ReSTConfig, selection="interpolation", thresholds=[0.5])) == [0, 0, 1]


def test_the_lowest_percentile_keeps_everything_and_the_highest_what_raft_keeps():
    lowest, highest = (config(ReSTConfig, selection="percentile", thresholds=[value]) for value in (0.0, 1.0))
    assert kept(SIX, lowest) == [1] * 6 and kept(SIX, highest) == kept(SIX, config())


def test_a_large_kl_coefficient_leaves_the_scores_out():
    samples = scored([9.0, 1.0], kl=[0.1, 0.0])
    assert kept(samples, config(kl_coef=1e6)) == [0, 1]


def bounds(score_map: str, scores, earlier=()) -> tuple[float, float] | None:
    ends = {"score_range": [-1.0, 2.0]} if score_map == "fixed" else {}
    args = config(ReSTConfig, score_map=score_map, **ends)
    return score_bounds(np.array(scores), (np.array(part) for part in earlier), args, stage=1)


def test_the_scores_that_the_map_takes_to_0_and_1():
    own, earlier = [0.5, np.nan, 1.0], [[3.0, np.nan], [0.0]]
    assert bounds("none", own, earlier) is None and bounds("fixed", own, earlier) == (-1.0, 2.0)
    assert bounds("grow", own, earlier) == (0.5, 1.0) and bounds("running", own, earlier) == (0.0, 3.0)
    assert bounds("grow", [np.nan], earlier) is None  # nothing to map


def test_random_control_keeps_as_many_of_each_prompt():
    args = config(random_selection=True)
    picks = {tuple(kept(SIX, args, seed=seed)) for seed in range(20)}
    assert all(sum(pick[:3]) == sum(pick[3:]) == 1 for pick in picks) and len(picks) > 3


def test_random_control_nests_as_the_thresholds_do():
    args = config(ReSTConfig, thresholds=[0.1, 0.5, 0.8], random_selection=True)
    samples = scored([0.2, 0.6, 0.9, 0.95, 0.3])
    counts = kept(samples, args, bounds=(0.0, 1.0))
    assert sorted(counts) == [1, 1, 2, 3, 3]


def test_a_shift_per_prompt_changes_local_but_not_global_selection():
    shifted = scored([101.0, 103.0, 102.0, 9.0, 7.0, 8.0], [0, 0, 0, 1, 1, 1])
    assert kept(shifted, config()) == kept(SIX, config())
    assert kept(shifted, config(selection="global")) == [0, 1, 1, 0, 0, 0]


def test_map_to_the_unit_interval():
    assert mapped_scores(np.array([-2.0, 0.0, 2.0]), (-2.0, 2.0)).tolist() == [0.0, 0.5, 1.0]
    assert mapped_scores(np.array([3.0, 3.0]), (3.0, 3.0)).tolist() == [0.0, 0.0]  # all alike: nothing is above


@pytest.mark.parametrize("selection", ["local", "global"])
def test_nothing_that_may_be_kept_keeps_nothing(selection):
    assert kept(scored([1.0, 2.0], truncated=[0, 1]), config(selection=selection)) == [0, 0]
