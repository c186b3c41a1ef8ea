"""What accelerate was told otherwise than the config is refused by its name, not passed over."""

from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState
from checkpoint_case import KINDS, make

from trl_ext.trainer_kit.launch_checks import check_launch

SAID = {
    "ACCELERATE_MIXED_PRECISION": ("bf16", "mixed_precision='bf16' beside bf16=False, fp16=False: one of the two"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("4", "gradient_accumulation_steps=4 beside 1: the config's counts"),
    "ACCELERATE_DYNAMO_BACKEND": ("INDUCTOR", "dynamo_backend='inductor' beside torch_compile=False"),
}
AGREES = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}
BATCHES = {
    "split_batches": (True, "a part of the rows that are planned for it"),
    "dispatch_batches": (True, "cannot deal out to all"),
    "even_batches": (False, "would wait for each other for ever"),
}


@pytest.fixture(autouse=True)
def no_state_is_left():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("kind", "name"), zip(KINDS, SAID, strict=True))
def test_the_environment_says_otherwise(tmp_path, monkeypatch, kind, name):
    value, message = SAID[name]
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"Trainer\(args=.*Config\(…\)\) with accelerate's {message}.* Set "):
        make(kind, tmp_path)


def test_what_agrees_is_taken(tmp_path, monkeypatch):
    for name, value in AGREES.items():
        monkeypatch.setenv(name, value)
    make("reward", tmp_path, gradient_accumulation_steps=2)


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
