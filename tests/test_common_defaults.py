"""What one option is by default is the same in every config, and what has changed says so once."""

import warnings
from dataclasses import fields

import pytest
import self_training_case
from peft import LoraConfig, get_peft_model
from self_training_case import trainer
from tiny import byte_tokenizer, tiny_llama
from trl import GRPOConfig, RewardConfig

from trl_ext import ImitationRewardConfig, PPOConfig, RAFTConfig, ReSTConfig, ReSTTrainer, SelfTrainingConfig
from trl_ext.generation import Sampling
from trl_ext.rewards.r3 import PAPER_LENGTH

ON_CPU = {"output_dir": "unused", "bf16": False, "report_to": "none"}
LORA = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def default(config, name: str):
    return next(field.default for field in fields(config) if field.name == name)


def test_completions_are_as_long_as_in_grpo():
    """The command's options are held to Sampling's in test_cli_generate.py."""
    length = default(GRPOConfig, "max_completion_length")
    assert default(PPOConfig, "max_completion_length") == Sampling().max_completion_length == PAPER_LENGTH == length


@pytest.mark.parametrize("config", [SelfTrainingConfig, RAFTConfig, ReSTConfig])
def test_a_length_that_is_left_open_is_said_to_have_changed(config):
    with pytest.warns(FutureWarning, match=r"None\): it is now 512, as in GRPO and PPO, and was 128") as caught:
        args = config(**ON_CPU)
    assert args.max_completion_length == Sampling().max_completion_length
    assert [warning.filename for warning in caught] == [__file__]


def test_a_length_that_is_given_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert RAFTConfig(**ON_CPU, max_completion_length=128).max_completion_length == 128


@pytest.mark.parametrize("options", [{}, {"cls": ReSTTrainer}])
def test_rates_of_raft_and_rest(tmp_path, options):
    """PPO's are in test_ppo_trainer.py. Of all weights the papers', without a warning; ten times as much with an adapter, new or of the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert trainer(tmp_path, learning_rate=None, **options).args.learning_rate == 2e-5
        given = trainer(tmp_path, learning_rate=3e-5, peft_config=LoraConfig(**LORA), **options)
        assert given.args.learning_rate == 3e-5
    adapted = get_peft_model(tiny_llama(byte_tokenizer()), LoraConfig(**LORA))
    for adapter in ({"peft_config": LoraConfig(**LORA)}, {"model": adapted}):
        with pytest.warns(
            FutureWarning, match=r"Trainer, learning_rate=None: with an adapter it is now 0.0002"
        ) as caught:
            one = trainer(tmp_path, learning_rate=None, **options, **adapter)
        assert one.args.learning_rate == 2e-4
        said = [warning.filename for warning in caught if "learning_rate" in str(warning.message)]
        assert said == [self_training_case.__file__]


def test_rate_of_the_reward_trainer_is_trls():
    """With imitation_coef=0 its run is TRL's bit for bit."""
    assert default(ImitationRewardConfig, "learning_rate") == default(RewardConfig, "learning_rate")
