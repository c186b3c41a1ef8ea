"""`r3` on the command line, with another encoder, constant or tokenizer than the paper's."""

import pytest
from encoders import saved_bert

from trl_ext import R3Reward, RelevanceReward, characters, unicode_wordpunct
from trl_ext.cli.command_arguments import RewardArguments
from trl_ext.cli.named_rewards import named


def test_alone_it_is_the_papers():
    assert named("r3", RewardArguments()) == R3Reward()


def test_its_constants_are_flags(tmp_path):
    path = saved_bert(tmp_path)
    arguments = RewardArguments(relevance_encoder=path, top_relevance=0.9, length_cap=70, tokenize="characters")
    expected = R3Reward(relevance=RelevanceReward(path), top_relevance=0.9, length_cap=70, tokenize=characters)
    assert named("r3", arguments) == expected


def test_a_tokenizer_of_ones_own_is_named_as_a_reward_is(tmp_path):
    file = tmp_path / "cuts.py"
    file.write_text("def halves(text):\n    return [text[:1], text[1:]]\n")
    reward = named("r3", RewardArguments(tokenize=f"{file}:halves"))
    assert reward.tokenize("ab") == ["a", "b"]
    assert named("r3", RewardArguments(tokenize="trl_ext:unicode_wordpunct")).tokenize is unicode_wordpunct


def test_an_unknown_one_is_refused():
    with pytest.raises(ValueError, match=r"--tokenize trl_ext:letters: it cannot be imported.*characters"):
        named("r3", RewardArguments(tokenize="letters"))
    with pytest.raises(ValueError, match=r"R3Reward\(top_relevance=0.0\): expected a positive number"):
        named("r3", RewardArguments(top_relevance=0.0))
    with pytest.raises(ValueError, match=r"R3Reward\(length_cap=0\): expected a positive number"):
        named("r3", RewardArguments(length_cap=0))
