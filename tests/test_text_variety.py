from itertools import chain

import numpy as np
import pytest

from trl_ext.self_training import text_variety
from trl_ext.self_training.text_variety import TextVariety
from trl_ext.sequences.texts import wordpunct


def test_by_hand():
    variety = TextVariety(["a b a", "", "b a"], ngrams=(1, 2, 3), segment=2)
    assert variety.distinct(1) == 2 / 5  # a b a b a
    assert variety.distinct(2) == 2 / 3  # ab, ba, ba
    assert variety.distinct(3) == 1.0  # aba alone: none goes from a text to the next
    assert variety.msttr == 1.0  # ab, ab, and an a that fills no segment


def test_nothing_is_varied():
    variety = TextVariety([])
    assert variety.distinct(2) == 1.0 and variety.msttr is None


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_pieces_are_counted_as_the_whole(at_once, monkeypatch):
    monkeypatch.setattr(text_variety, "AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 12, rng.integers(0, 9)))) for _ in range(200)]
    variety = TextVariety(iter(texts), ngrams=(1, 2, 3), segment=7)
    tokens = [wordpunct(text) for text in texts]
    for n in (1, 2, 3):
        grams = [gram for text in tokens for gram in zip(*(text[i:] for i in range(n)), strict=False)]
        assert variety.distinct(n) == len(set(grams)) / len(grams)
    joined = list(chain.from_iterable(tokens))
    segments = [joined[i : i + 7] for i in range(0, len(joined) - 6, 7)]
    assert variety.msttr == pytest.approx(np.mean([len(set(part)) / 7 for part in segments]))
