"""What accelerate was told otherwise than the config is refused by its name, not passed over."""

import os
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from accelerate.state import AcceleratorState
from checkpoint_case import make
from transformers import training_args

from trl_ext.trainer_kit.launch_checks import check_launch

PRECISION, STEPS, COMPILER = (
    f"ACCELERATE_{name}" for name in ("MIXED_PRECISION", "GRADIENT_ACCUMULATION_STEPS", "DYNAMO_BACKEND")
)
BF16, FP16, TWO = {"bf16": True}, {"fp16": True}, {"gradient_accumulation_steps": 2}
COUNTS = r"the config's counts, .*accelerate's to 1\.$"
OTHERWISE = [
    ("ppo", PRECISION, "bf16", {}, "mixed_precision='bf16' beside bf16=False, fp16=False: one of the two"),
    (
        "raft",
        PRECISION,
        "fp16",
        {},
        "mixed_precision='fp16' beside bf16=False, fp16=False: .*or the config's to 'fp16'",
    ),
    (
        "reward",
        PRECISION,
        "bf16",
        FP16,
        "mixed_precision='bf16' beside bf16=False, fp16=True: .*to 'no', or the config's",
    ),
    ("ppo", PRECISION, "fp16", BF16, "mixed_precision='fp16' beside bf16=True, fp16=False"),
    (
        "raft",
        PRECISION,
        "fp8",
        BF16,
        r"mixed_precision='fp8' beside bf16=True, fp16=False: .*Set accelerate's to 'no'\.$",
    ),
    ("ppo", STEPS, "4", TWO, f"gradient_accumulation_steps=4 beside 2: {COUNTS}"),
    ("raft", STEPS, "4", {}, f"gradient_accumulation_steps=4 beside 1: {COUNTS}"),
    ("reward", STEPS, "2", {}, f"gradient_accumulation_steps=2 beside 1: {COUNTS}"),
    ("ppo", COMPILER, "EAGER", {}, "dynamo_backend='eager' beside torch_compile=False: .*torch_compile=True"),
    ("reward", COMPILER, "INDUCTOR", {}, "dynamo_backend='inductor' beside torch_compile=False"),
]
AGREE = [
    ({PRECISION: "no", STEPS: "2"}, TWO),
    ({PRECISION: "no", STEPS: "1"}, TWO | BF16),
    ({PRECISION: "bf16", STEPS: "auto"}, BF16),
    ({PRECISION: "fp16", COMPILER: "NO"}, FP16),
    ({COMPILER: "INDUCTOR"}, {"torch_compile": True}),
]
BATCHES = {
    "split_batches": (True, "a part of the rows that are planned for it"),
    "dispatch_batches": (True, "cannot deal out to all"),
    "even_batches": (False, "would wait for each other for ever"),
}


@pytest.fixture(autouse=True)
def no_state_is_left(monkeypatch):
    """And a CPU may take 16 bits; configs tell accelerate of the compiler by the environment."""
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    with patch.dict(os.environ):
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("kind", "name", "value", "options", "message"), OTHERWISE)
def test_the_environment_says_otherwise(tmp_path, monkeypatch, kind, name, value, options, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"Trainer\(args=.*Config\(…\)\) with accelerate's {message}.*") as raised:
        make(kind, tmp_path, **options)
    assert " Set " in str(raised.value)


@pytest.mark.parametrize(("said", "options"), AGREE)
def test_what_agrees_is_taken(tmp_path, monkeypatch, said, options):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    make("reward", tmp_path, **options)


def test_steps_that_are_accumulated_behind_the_config(tmp_path):
    config = {"gradient_accumulation_kwargs": {"num_steps": 4}}
    with pytest.raises(ValueError, match=r"Config\(accelerator_config=.*Write gradient_accumulation_steps=4"):
        make("ppo", tmp_path, accelerator_config=config)


@pytest.mark.parametrize("name", BATCHES)
def test_how_batches_come_to_several_processes(tmp_path, name):
    value, message = BATCHES[name]
    one = make("reward", tmp_path, accelerator_config={name: value})  # one process deals with itself
    several = SimpleNamespace(num_processes=2, mixed_precision="no", state=one.accelerator.state)
    with pytest.raises(ValueError, match=rf"accelerator_config={{'{name}': {value}}}: .*{message}.*Leave it out"):
        check_launch(SimpleNamespace(accelerator=several, args=one.args))
