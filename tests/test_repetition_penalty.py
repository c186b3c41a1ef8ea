import pickle

import pytest
from test_length_incentive import morphemes

from trl_ext import RepetitionPenalty
from trl_ext.sequences.texts import characters


@pytest.mark.parametrize(
    ("completion", "share"),
    [
        ("", 1.0),
        ("one", 1.0),
        ("one two", 1.0),
        ("no no", 1.0),  # two tokens have no trigram to repeat
        ("no no no", 1.0),
        ("no no no no", 1 / 2),
        ("...!!!???", 1.0),  # one token
        (". ! . ! . !", 2 / 4),  # .!. !.! .!. !.!
        ("a b c a b c", 3 / 4),  # abc bca cab abc
        ("No no no no", 2 / 2),  # case-sensitive: (No no no), (no no no)
        ("a b c. a b c.", 4 / 6),  # abc bc. c.a .ab abc bc.
    ],
)
def test_distinct_trigrams_by_hand(completion, share):
    assert RepetitionPenalty()(completions=[completion]) == [share]


def test_other_ngrams():
    assert RepetitionPenalty(ngram=1)(completions=["to be or not to be"]) == [4 / 6]
    assert RepetitionPenalty(ngram=2)(completions=["to be or not to be"]) == [4 / 5]
    with pytest.raises(ValueError, match=r"RepetitionPenalty\(ngram=0\): an n-gram has at least 1 token"):
        RepetitionPenalty(ngram=0)


def test_a_loop_tends_to_zero_and_fresh_text_stays_one():
    assert RepetitionPenalty()(completions=["no " * 1000, " ".join(map(str, range(1000)))]) == [1 / 998, 1.0]


def test_korean_words_hide_a_repetition_that_morphemes_show():
    """Three times the same sentence with another particle: as words no trigram comes twice, not even a pair."""
    texts = ["학교가 좋다 학교는 좋다 학교도 좋다"]
    assert RepetitionPenalty()(completions=texts) == [1.0]
    assert RepetitionPenalty(ngram=2)(completions=texts) == [1.0]
    # 학교·가·좋 가·좋·다 좋·다·학교 다·학교·는 학교·는·좋 는·좋·다 [좋·다·학교] 다·학교·도 학교·도·좋 도·좋·다
    assert RepetitionPenalty(tokenize=morphemes)(completions=texts) == [9 / 10]
    # 학교가 교가좋 가좋다 좋다학 다학교 학교는 교는좋 는좋다 [좋다학] [다학교] 학교도 교도좋 도좋다
    assert RepetitionPenalty(tokenize=characters)(completions=texts) == [11 / 13]


def test_a_batch_is_its_rows():
    texts = ["a b c a b c", "", "x", "! ! ! !"]
    reward = RepetitionPenalty()
    assert reward(completions=texts) == [reward(completions=[text])[0] for text in texts]


def test_it_is_a_value():
    reward = RepetitionPenalty(ngram=2, tokenize=characters)
    assert pickle.loads(pickle.dumps(reward)) == reward
    assert len({RepetitionPenalty(), RepetitionPenalty(ngram=3), reward}) == 2
