import pickle
import re

import pytest

from trl_ext import LengthIncentive
from trl_ext.sequences.texts import characters


def morphemes(text: str) -> list[str]:
    """What a morpheme tokenizer makes of the sentence below: stem and ending, noun and particle apart."""
    return re.findall(r"학교|좋|가|는|도|다", text)


@pytest.mark.parametrize(
    ("completion", "tokens"),
    [
        ("", 0),
        ("   \n", 0),
        ("Yes", 1),
        ("Yes.", 2),  # the full stop counts
        ("?!...", 1),  # a run of punctuation is one token
        ("!!! ??? ...", 3),
        ("It's 3.5 km, isn't it?", 13),  # It · ' · s · 3 · . · 5 · km · , · isn · ' · t · it · ?
        ("word " * 1000, 1000),  # no cap
    ],
)
def test_tokens_by_hand(completion, tokens):
    assert LengthIncentive()(completions=[completion]) == [tokens / 100]


def test_conversational_completions_count_without_role():
    said = [{"role": "assistant", "content": "Because it scatters."}]
    assert LengthIncentive()(completions=[said]) == LengthIncentive()(completions=["Because it scatters."]) == [0.04]


def test_korean_words_hide_their_particles():
    """'School is good, school (topic) is good, school too is good': a word keeps its particle, a character does not."""
    text = "학교가 좋다 학교는 좋다 학교도 좋다"
    assert LengthIncentive()(completions=[text]) == [0.06]  # 학교가 · 좋다 · 학교는 · 좋다 · 학교도 · 좋다
    assert LengthIncentive(tokenize=morphemes)(completions=[text]) == [0.12]  # 3 × (학교 · particle · 좋 · 다)
    assert LengthIncentive(tokenize=characters)(completions=[text]) == [0.15]  # 3 × (학 교 particle 좋 다)


@pytest.mark.parametrize(("cap", "expected"), [(1, 0.01), (3, 0.03), (4, 0.04), (5, 0.04), (None, 0.04)])
def test_tokens_beyond_the_cap_earn_nothing(cap, expected):
    assert LengthIncentive(cap=cap)(completions=["Because it scatters."]) == [expected]  # Because · it · scatters · .


def test_under_a_cap_filler_earns_nothing():
    paid = LengthIncentive(cap=4)(completions=["Because it scatters.", "Because it scatters. " + "And so on. " * 50])
    assert paid[0] == paid[1] == 0.04


@pytest.mark.parametrize("cap", [0, -1, 2.5, "70", True])
def test_what_is_no_cap(cap):
    with pytest.raises(ValueError, match=rf"LengthIncentive\(cap={cap!r}\): expected a positive number of tokens"):
        LengthIncentive(cap=cap)


def test_it_is_a_value():
    reward = LengthIncentive(tokenize=characters)
    assert pickle.loads(pickle.dumps(reward)) == reward
    assert len({LengthIncentive(), LengthIncentive(), reward}) == 2
