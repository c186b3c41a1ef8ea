import pytest

from trl_ext.self_training.monitors import distinct, diversity_warning, is_level, msttr


def test_distinct_counts_over_all_texts():
    # unigrams a b a c: 3 of 4; bigrams ab, ac: 2 of 2 (none across texts)
    assert distinct(["a b", "a c"], n=1) == 0.75
    assert distinct(["a b", "a c"], n=2) == 1.0


def test_texts_too_short_for_an_ngram_repeat_nothing():
    assert distinct(["a"], n=2) == 1.0 == distinct([], n=1)


def test_msttr_is_the_mean_over_whole_segments():
    # segments of 2 over a b | a a | (b): 2/2 and 1/2
    assert msttr(["a b a", "a b"], segment=2) == 0.75


def test_msttr_of_a_long_text_does_not_depend_on_its_length():
    text = " ".join(str(i % 50) for i in range(100))
    assert msttr([text]) == msttr([text] * 7) == 0.5


@pytest.mark.parametrize(("now", "warns"), [(0.6, False), (0.36, False), (0.34, True)])
def test_a_fast_fall_of_diversity_is_warned_of(now, warns):
    assert (diversity_warning(0.5, now) is not None) == warns


def test_level_means_no_rise_over_the_last_stages():
    assert is_level([1.0, 0.9, 1.0, 0.8], stages=3)
    assert not is_level([1.0, 0.9, 1.1, 0.8], stages=3)
    assert not is_level([1.0, 0.9, 1.0], stages=3)  # three stages and none before them
    assert not is_level([1.0, 0.9, 0.8, 0.7, 0.6], stages=0)
