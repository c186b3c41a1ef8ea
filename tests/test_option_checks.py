"""The options of what trainers are given, by the checker of the configs: numbers are numbers, and none does nothing."""

import math
import re
from decimal import Decimal

import numpy as np
import pytest
from shared_case import base_path
from tiny import byte_tokenizer, tiny_reward_model

from trl_ext import (
    EndpointGenerator,
    ImitationRewardConfig,
    PPOConfig,
    RAFTConfig,
    RepetitionPenalty,
    ReSTConfig,
    SharedBase,
)
from trl_ext.generation import TransformersGenerator, VLLMGenerator
from trl_ext.rewards.learned_reward import LearnedReward
from trl_ext.rewards.r3 import R3Reward
from trl_ext.rewards.relevance import RelevanceReward
from trl_ext.rewards.routed_product import Route, RoutedProduct


def learned(**options):
    tokenizer = byte_tokenizer()
    return LearnedReward(tiny_reward_model(tokenizer), tokenizer, **options)


def endpoint(**options):
    return EndpointGenerator("m", "http://host/v1", api_key="k", **options)


def route(**options):
    return Route("open", (), **options)


@pytest.mark.parametrize(
    ("make", "name", "bad", "message"),
    [
        (learned, "batch_size", 2.5, "expected at least 1"),
        (learned, "max_length", "64", "expected at least 1"),
        (learned, "max_length", 257, "the model's window has 256 positions. Give max_length=256 or less"),
        (learned, "eos_token_ids", ["</s>"], "expected ids of tokens"),
        (endpoint, "concurrency", 1.5, "expected at least 1"),
        (endpoint, "timeout", "60", "expected seconds, more than 0"),
        (endpoint, "max_retries", -1, "expected 0 or more"),
        (TransformersGenerator, "batch_size", 1.5, "expected at least 1"),
        (TransformersGenerator, "batch_size", True, "expected at least 1"),
        (VLLMGenerator, "gpu_memory_utilization", "0.5", r"expected a share in \(0, 1\]"),
        (VLLMGenerator, "prompts_at_once", 0, "expected at least 1"),
        (VLLMGenerator, "max_model_len", 1.5, "expected at least 1"),
        (RepetitionPenalty, "ngram", 2.5, "it must be a whole number"),
        (R3Reward, "max_completion_length", 99.5, "expected a positive number"),
        (R3Reward, "top_relevance", "3", "expected a positive number"),
        (R3Reward, "length_cap", 69.5, "expected a positive number"),
        (RelevanceReward, "batch_size", 1.5, "expected at least 1"),
        (RelevanceReward, "contrast", "no", "it must be True or False"),
        (route, "scale", math.nan, "expected a finite number"),
        (route, "scale", "2", "expected a finite number"),
    ],
)
def test_values_of_another_type(make, name, bad, message):
    with pytest.raises(ValueError, match=rf"{name}={re.escape(repr(bad))}.*{message}"):
        make(**{name: bad})


def test_whole_numbers_of_other_types():
    assert (
        learned(eos_token_ids={np.int64(1), 2}).eos_token_ids
        == {1, 2}
        == learned(eos_token_ids=iter([1, 2])).eos_token_ids
    )
    assert TransformersGenerator(batch_size=np.int64(4)).batch_size == 4
    assert (learned(batch_size=2.0).batch_size, learned(max_length=256.0).max_length) == (2, 256)
    assert R3Reward(max_completion_length=256.0) == R3Reward(max_completion_length=256)


@pytest.mark.parametrize(("threshold", "bits"), [(0.0, None), (0.0, 4), (8.0, None)])
def test_an_outlier_threshold_without_eight_bits(tmp_path, threshold, bits):
    path = base_path(tmp_path)
    with pytest.raises(
        ValueError, match=rf"threshold={threshold}, bits={bits}\): it does nothing without bits=8. Set"
    ):
        SharedBase.from_pretrained(path, bits=bits, llm_int8_threshold=threshold)
    with pytest.raises(ValueError, match=r"llm_int8_threshold='6'\): it must be in \[0.0, ∞\)"):
        SharedBase.from_pretrained(path, bits=8, llm_int8_threshold="6")
    SharedBase.from_pretrained(path, llm_int8_threshold=6)


class Gives:
    name = "given"

    def __init__(self, *values):
        self.values = values

    def __call__(self, *, completions, **columns):
        return list(self.values)


def product_of(*values):
    product = RoutedProduct((Route("open", (Gives(*values),), scale=2.0),))
    return product(completions=["a", "b"], query_type=["open", "open"])


def test_factors_are_numbers_of_any_library():
    assert product_of(Decimal("0.5"), np.float32(2)) == [1.0, 4.0]
    assert math.isnan(product_of(1, math.nan)[1])  # the reward's caller names the row


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            (1.0, None),
            r"RoutedProduct: its factor 'given' returned None for row 1, and a product needs a number from each",
        ),
        ((1.0, "x"), r"'given' returned 'x' for row 1 \(completion 'b'\): expected a finite number"),
        ((1.0,), r"'given' returned 1 rewards for 2 completions"),
    ],
)
def test_factors_that_are_no_numbers(values, message):
    with pytest.raises(ValueError, match=message):
        product_of(*values)


# Numbers that configs inherit from transformers and TRL

CONFIGS = [PPOConfig, RAFTConfig, ReSTConfig, ImitationRewardConfig]


def config(cls, **given):
    lengths = {} if cls is ImitationRewardConfig else {"max_completion_length": 8}
    return cls(output_dir="unused", bf16=False, report_to="none", **lengths | given)


@pytest.mark.parametrize("cls", CONFIGS)
@pytest.mark.parametrize(
    ("name", "bads"),
    [
        ("learning_rate", (-1e-5, math.nan, math.inf)), ("weight_decay", (-0.1, math.nan)), ("adam_beta1", (1.0, -0.1)),
        ("adam_beta2", (1, math.nan)), ("adam_epsilon", (-1e-8, math.inf)), ("max_grad_norm", (-1, math.nan, None)),
        ("gradient_accumulation_steps", (0, -1, 1.5)), ("per_device_train_batch_size", (0, -8)),
        ("per_device_eval_batch_size", (0, 0.5)), ("seed", (-1, 2**32, 0.5)), ("data_seed", (-1, 2**32)),
        ("warmup_steps", (-1, math.inf)), ("logging_steps", (0, -1, math.inf)), ("save_steps", (0, math.nan)),
        ("eval_steps", (-1, math.inf)), ("eval_delay", (-1,)), ("max_steps", (-2, 1.5)), ("pad_to_multiple_of", (0, "0", "x")),
        ("num_train_epochs", (0, -1.0, math.inf, math.nan)), ("label_smoothing_factor", (-0.1, 1.5)),
        ("dataloader_num_workers", (-1,)),
    ],
)  # fmt: skip
def test_inherited_numbers_out_of_range(cls, name, bads):
    """Also the ones that would divide by zero in the parent."""
    for bad in bads:
        with pytest.raises(ValueError, match=rf"^{cls.__name__}\({name}={re.escape(repr(bad))}\): (it must|expected)"):
            config(cls, **{name: bad})


@pytest.mark.parametrize("cls", CONFIGS)
@pytest.mark.parametrize(
    "given",
    [
        {"warmup_steps": 0.1}, {"warmup_steps": 10}, {"save_steps": 0.25, "logging_steps": 0.5, "eval_steps": 0.1},
        {"max_grad_norm": 0}, {"learning_rate": 0}, {"weight_decay": 0.1, "adam_beta1": 0, "adam_epsilon": 0.0},
        {"seed": 2**32 - 1, "data_seed": 0}, {"per_device_eval_batch_size": 3}, {"gradient_accumulation_steps": 3},
        {"pad_to_multiple_of": "auto"}, {"pad_to_multiple_of": "8"}, {"pad_to_multiple_of": None}, {"max_steps": -1},
        {"eval_steps": 0, "eval_strategy": "steps"},
    ],
)  # fmt: skip
def test_what_transformers_documents_is_taken(cls, given):
    config(cls, **given)


@pytest.mark.parametrize("cls", [PPOConfig, RAFTConfig, ReSTConfig])
@pytest.mark.parametrize("bad", [[math.nan], [1.0, math.inf]])
def test_weights_of_rewards_are_finite(cls, bad):
    with pytest.raises(
        ValueError, match=rf"{cls.__name__}\(reward_weights=.*\): expected finite numbers, one per reward"
    ):
        config(cls, reward_weights=bad)
    assert config(cls, reward_weights=[0, -1.5]).reward_weights == [0, -1.5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "there are no labels to smooth"),
        ({"train_sampling_strategy": "group_by_length"}, "expected 'random' or 'sequential', since a row is a pair"),
        ({"center_rewards_coefficient": -0.1}, "it must be in"),
        ({"center_rewards_coefficient": math.nan}, "it must be in"),
        ({"max_length": 0}, "it must be in"),
    ],
)
def test_reward_modeling(given, message):
    (name,) = given
    with pytest.raises(ValueError, match=rf"ImitationRewardConfig\({name}=.*\): {message}"):
        config(ImitationRewardConfig, **given)


def test_options_of_reward_modeling_that_do_something():
    config(
        ImitationRewardConfig, center_rewards_coefficient=0.0, train_sampling_strategy="sequential", max_length=None
    )


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("entropy_coef", math.nan),
        ("entropy_coef", math.inf),
        ("steps_per_generation", 0),
        ("generation_batch_size", 0),
    ],
)
def test_ppo(name, bad):
    with pytest.raises(ValueError, match=rf"PPOConfig\({name}={bad}\): (it must|expected)"):
        config(PPOConfig, **{name: bad})
