"""Each file of examples/accelerate, read by `accelerate launch` as its own comment calls it: what its processes are told."""

import os
import re
from pathlib import Path

import pytest
from accelerate.commands import launch
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from cpu_sharding import ENGINES

import trl_ext
from trl_ext.trainer_kit.sharding import engine_asked

FOLDER = Path(__file__).parents[1] / "examples/accelerate"
SHARDED = ("PPOTrainer", "ImitationRewardTrainer")
FILES = {
    "ddp": ({}, None, ()),  # every trainer
    "fsdp2": (ENGINES["FSDP2"], "FSDP2", (*SHARDED, "RAFTTrainer", "ReSTTrainer")),
    "zero2": (ENGINES["ZeRO-2"], "DeepSpeed", SHARDED),
    "zero3": (ENGINES["ZeRO-3, small tensors whole"], "DeepSpeed", SHARDED),
}
OF_AN_ENGINE = re.compile(r"ACCELERATE_(USE_|DEEPSPEED_).*|FSDP_.*")
DEFAULTS = {  # which the file need not say, nor accelerate for a CPU
    *("FSDP_SHARDING_STRATEGY", "FSDP_MIN_NUM_PARAMS", "FSDP_FORWARD_PREFETCH", "FSDP_USE_ORIG_PARAMS"),
    *("FSDP_SYNC_MODULE_STATES", "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD"),
}


OF_ZERO_3 = {"ACCELERATE_DEEPSPEED_ZERO3_INIT", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"}


def test_there_is_no_other():
    assert {path.stem for path in FOLDER.iterdir()} == FILES.keys()


@pytest.fixture
def told(request, monkeypatch) -> tuple[dict[str, str], str]:
    """The environment of the launched processes, and the file's comment."""
    text = (FOLDER / f"{request.param}.yaml").read_text()
    command = re.search(r"accelerate launch (.*)", text)[1].split()
    launched = []
    monkeypatch.chdir(FOLDER.parents[1])
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(launch, "multi_gpu_launcher", launched.append)
    monkeypatch.setattr(launch, "deepspeed_launcher", launched.append)
    launch.launch_command(launch.launch_command_parser().parse_args(command))
    (args,) = launched
    variables = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    assert (args.num_processes, args.training_script) == (4, "my_run.py")
    return variables, " ".join(re.findall(r"^# (.*)$", text, re.MULTILINE))


@pytest.mark.parametrize(("told", "name"), [(name, name) for name in FILES], indirect=["told"])
def test_a_file_launches_what_its_comment_says(told, name, monkeypatch):
    """The engine, of whose settings none is another than what is tested; nothing that a trainer's config says."""
    (variables, comment), (expected, engine, trainers) = told, FILES[name]
    said = {key: value.lower() for key, value in variables.items() if OF_AN_ENGINE.fullmatch(key)}
    tested = {key: value.lower() for key, value in expected.items() if OF_AN_ENGINE.fullmatch(key)}
    own = {key: value for key, value in said.items() if key not in DEFAULTS}
    assert own == {key: tested.get(key) for key in own} and tested.keys() - own.keys() <= OF_ZERO_3
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    monkeypatch.setattr(os, "environ", variables)
    assert engine_asked() == engine
    assert variables["ACCELERATE_MIXED_PRECISION"] == "no" and variables.get("ACCELERATE_DYNAMO_BACKEND", "NO") == "NO"
    assert variables.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") == "1"
    named = set(re.findall(r"\w+Trainer\b", comment.split(" What else ")[0]))
    assert named == set(trainers) and all(hasattr(trl_ext, trainer) for trainer in named)
    assert trainers or "Every trainer." in comment
