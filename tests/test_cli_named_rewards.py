"""Rewards by their names on the command line, in every command that takes some."""

import pytest
from cli_case import refused, write_rows

from trl_ext import R3Reward, RepetitionPenalty
from trl_ext.cli import main
from trl_ext.cli.command_arguments import RewardArguments
from trl_ext.cli.named_rewards import check_rewards, named, named_reward

ROWS = [{"prompt": "why?", "completion": " a b c d", "chosen": " a b c d", "rejected": " a a a a", "reference": " so"}]
COMMANDS = {
    "score": "--samples rows.jsonl --output scored.parquet",
    "probe": "--dataset_name rows.jsonl",
    "evaluate": "--pairs rows.jsonl",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_rows(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_bare_name_of_ours(command, here, capsys):
    main([command, *COMMANDS[command].split(), "--reward_funcs", "RepetitionPenalty"])
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_how_it_is_spelt(command, here, capsys):
    told = refused(capsys, command, *COMMANDS[command].split(), "--reward_funcs", "repetition_penalty")
    assert (
        "--reward_funcs repetition_penalty: there is no folder of that name. Did you mean RepetitionPenalty?" in told
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_asks_for_one_alike(command, here, capsys):
    assert "Give r3, another of trl_ext such as" in refused(capsys, command, *COMMANDS[command].split())
    told = refused(capsys, command, *COMMANDS[command].split(), "--reward_funcs", "rm", "--top_relevance", "1")
    assert "--top_relevance: it is of r3, which --reward_funcs does not name." in told


def test_what_a_name_stands_for(here, tmp_path):
    assert named_reward("RepetitionPenalty") == named_reward("trl_ext:RepetitionPenalty") == RepetitionPenalty()
    assert named_reward("r3") == R3Reward()
    assert named("R3Reward", RewardArguments(top_relevance=1.0)) == R3Reward(top_relevance=1.0)
    assert named_reward("gpt2") == "gpt2" and named_reward("reward") == "reward"  # of the hub, or yet to come
    (tmp_path / "RepetitionPenalty").mkdir()
    assert named_reward("RepetitionPenalty") == "RepetitionPenalty"  # a model's folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("PPOTrainer", "a name of trl_ext, and not of a reward. Give r3"),
        (
            "LearnedReward",
            r"cannot be made without arguments.*as judge = LearnedReward\(…\), and name it FILE.py:judge",
        ),
        ("trl_ext:LearnedReward", "cannot be made without arguments"),
        ("RepetitionPenality", "Did you mean RepetitionPenalty"),
        ("R3", "Did you mean r3"),
    ],
)
def test_what_is_no_reward(name, message):
    with pytest.raises(ValueError, match=f"--reward_funcs {name}: .*{message}"):
        named_reward(name, flag="--reward_funcs")


def test_options_of_r3_beside_it():
    check_rewards(RewardArguments(reward_funcs=["rm", "r3"], top_relevance=1.0))
    check_rewards(RewardArguments(), needed=False)
