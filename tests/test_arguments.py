"""Numbers, seeds, devices and dtypes that public names are given from Python: one line for what cannot be."""

import math

import pytest
import torch
from shared_case import base_path
from tiny import byte_tokenizer, tiny_reward_model

from trl_ext import (
    EndpointGenerator,
    LearnedReward,
    R3Reward,
    RelevanceReward,
    RepetitionPenalty,
    Route,
    SharedBase,
    TransformersGenerator,
    VLLMGenerator,
)
from trl_ext.demo.chain import run_demo
from trl_ext.generation import Sampling
from trl_ext.trainer_kit.device import checked_device, checked_dtype
from trl_ext.trainer_kit.seeds import check_seed

NO_COUNTS = [0, -1, 1.5, "8", True, None]


def reward(**options):
    return LearnedReward(tiny_reward_model(byte_tokenizer()), byte_tokenizer(), **options)


def endpoint(**options):
    return EndpointGenerator("m", "http://h/v1", **options)


@pytest.mark.parametrize("value", NO_COUNTS)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Sampling, "num_generations"),
        (Sampling, "max_completion_length"),
        (endpoint, "concurrency"),
        (VLLMGenerator, "prompts_at_once"),
        (reward, "batch_size"),
        (RelevanceReward, "batch_size"),
        (RelevanceReward, "max_length"),
    ],
)
def test_what_is_no_count(make, name, value):
    with pytest.raises(ValueError, match=rf"\({name}={value!r}\): expected at least 1, a whole number"):
        make(**{name: value})


@pytest.mark.parametrize("value", NO_COUNTS[:-1])
@pytest.mark.parametrize(
    ("make", "name"),
    [(TransformersGenerator, "batch_size"), (VLLMGenerator, "max_model_len"), (reward, "max_length")],
)
def test_what_is_neither_a_count_nor_none(make, name, value):
    with pytest.raises(ValueError, match=rf"\({name}={value!r}\): expected at least 1, a whole number"):
        make(**{name: value})
    make(**{name: None})
    make(**{name: 7})


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (Sampling, "temperature", math.nan),
        (Sampling, "temperature", "1"),
        (Sampling, "top_p", None),
        (Sampling, "top_k", -1),
        (Sampling, "top_k", 0.5),
        (Sampling, "min_p", "0.1"),
        (Sampling, "repetition_penalty", 0),
        (Sampling, "seed", -1),
        (Sampling, "seed", 2**32),
        (endpoint, "timeout", 0),
        (endpoint, "timeout", "600"),
        (endpoint, "max_retries", -1),
        (VLLMGenerator, "gpu_memory_utilization", "0.9"),
        (R3Reward, "top_relevance", "3.5"),
        (RelevanceReward, "device", "cdua"),
        (RelevanceReward, "dtype", "floot32"),
        (RelevanceReward, "dtype", torch.int8),
        (reward, "device", "cpu:1"),
        (reward, "device", "cdua"),
    ],
)
def test_what_cannot_be_is_named(make, name, value):
    with pytest.raises(ValueError, match=rf"{name}='?{value}'?\): expected "):
        make(**{name: value})


def test_an_n_gram_of_half_tokens():
    with pytest.raises(ValueError, match=r"RepetitionPenalty\(ngram=2.5\): it must be a whole number"):
        RepetitionPenalty(ngram=2.5)


def test_a_scale_that_is_no_number():
    with pytest.raises(ValueError, match=r"Route\(scale='2'\): expected a finite number"):
        Route("open", (RepetitionPenalty(),), scale="2")


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "0", True, None])
def test_what_is_no_seed(seed, tmp_path):
    with pytest.raises(ValueError, match=r"--seed: expected a whole number in \[0, 2³²\)"):
        check_seed(seed, call="--seed")
    with pytest.raises(ValueError, match=r"run_demo\(seed=.*\): expected"):
        run_demo(tmp_path, seed=seed)
    for good in (0, 2**32 - 1, torch.tensor(3).numpy()[()]):
        check_seed(good, call="")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cdua", "expected a device such as"),
        (None, "expected a device such as"),
        ("cpu:7", "expected one of 1, counted from 0. Give 'cpu' or a lower number"),
        pytest.param(
            "cuda",
            "no CUDA device is available here. Give 'cpu'",
            marks=pytest.mark.skipif("torch.cuda.is_available()", reason="needs a machine without a card"),
        ),
    ],
)
def test_what_is_no_device_here(device, message):
    with pytest.raises(ValueError, match=f"call: {message}"):
        checked_device(device, call="call")
    assert checked_device("cpu", call="") == checked_device(torch.device("cpu"), call="") == torch.device("cpu")


def test_what_is_no_dtype():
    for bad in ("floot32", "int8", torch.int8, 16, None, "Tensor"):
        with pytest.raises(ValueError, match="call: expected a floating-point dtype such as"):
            checked_dtype(bad, call="call")
    assert checked_dtype("torch.float16", call="") == checked_dtype(torch.float16, call="") == torch.float16


def test_a_base_is_asked_for_what_can_be(tmp_path):
    path = base_path(tmp_path)
    for option, value in (("dtype", "floot32"), ("llm_int8_threshold", "6"), ("llm_int8_threshold", -1.0)):
        with pytest.raises(
            ValueError, match=rf"SharedBase.from_pretrained\({option}={value!r}\): (expected|it must be in)"
        ):
            SharedBase.from_pretrained(path, **{option: value})
    with pytest.raises(ValueError, match=r"SharedBase.from_pretrained\('no/model'\): it cannot be loaded"):
        SharedBase.from_pretrained("no/model")
    base = SharedBase.from_pretrained(path, dtype="auto")
    with pytest.raises(ValueError, match=r"SharedBase.reward_model\(seed=-1\): expected"):
        base.reward_model(seed=-1)
    with pytest.raises(ValueError, match=r"SharedBase.to\('cdua'\): expected a device such as"):
        base.to("cdua")
    for option, value in (("dtype", "floot32"), ("device", "cdua")):
        with pytest.raises(ValueError, match=rf"SharedBase.merge\({option}='{value}'\): expected"):
            base.merge(str(tmp_path), tmp_path / "merged", **{option: value})
