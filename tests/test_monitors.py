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


def test_a_fast_fall_of_diversity_is_warned_of():
    varied, alike = [f"{i} a" for i in range(10)], ["1 a"] * 7 + ["2 b", "3 c", "4 d"]  # distinct-2: 1 and .4
    assert "fell from 1.000 to 0.400" in diversity_warning(varied, alike)
    assert diversity_warning(alike, alike) is None is diversity_warning(alike, varied)


def test_keeping_more_is_no_fall_of_diversity():
    """distinct-2 of 60 texts is lower than that of 6 of them, though nothing has changed."""
    texts = [f"{i % 7} a" for i in range(60)]
    assert distinct(texts, n=2) < 0.7 * distinct(texts[:6], n=2)
    assert diversity_warning(texts[:6], texts) is None


def test_level_means_no_rise_over_the_last_stages():
    assert is_level([1.0, 0.9, 1.0, 0.8], stages=3)
    assert not is_level([1.0, 0.9, 1.1, 0.8], stages=3)
    assert not is_level([1.0, 0.9, 1.0], stages=3)  # three stages and none before them
    assert not is_level([1.0, 0.9, 0.8, 0.7, 0.6], stages=0)
