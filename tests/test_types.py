"""What a type checker sees of the package: a user's program is checked, and the lazy names are all known."""

import ast
import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from trl import GRPOTrainer, RewardTrainer, SFTTrainer

from trl_ext import ImitationRewardTrainer, PPOTrainer, RAFTTrainer
from trl_ext.self_training.self_training_input import REFUSED

ROOT = Path(__file__).parent.parent
PROGRAM = Path(__file__).parent / "user_program.py"
ROOMS = [path for path in sorted(ROOT.glob("trl_ext/**/__init__.py")) if "lazy_exports(" in path.read_text()]


def found_errors(program: Path) -> dict[int, str]:
    """By line, what pyright says; basedpyright is pyright with its node, so it needs no network."""
    pytest.importorskip("basedpyright", reason="in the extra [test]")
    call = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, str(program)]
    output = json.loads(subprocess.run(call, cwd=ROOT, stdout=subprocess.PIPE, check=False).stdout)
    errors = [entry for entry in output["generalDiagnostics"] if entry["severity"] == "error"]
    return {entry["range"]["start"]["line"] + 1: entry["message"] for entry in errors}


def test_the_checker_objects_to_what_is_wrong_in_a_users_program_and_to_nothing_else():
    """Names of options, arguments, exports and methods, and types of values; it reads TRL's, which has py.typed."""
    marks = [re.search(r'# error: "(\w+)"', line) for line in PROGRAM.read_text().splitlines()]
    expected = {number: mark[1] for number, mark in enumerate(marks, start=1) if mark}
    found = found_errors(PROGRAM)
    assert {line: found[line] for line in found.keys() - expected.keys()} == {}
    missed = {line: name for line, name in expected.items() if f'"{name}"' not in found.get(line, "")}
    assert missed == {}


def names_in(path: Path) -> dict[str, str]:
    """What its TYPE_CHECKING block imports: modules by the names."""
    modules = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert all(name.asname == name.name for name in line.names)  # `as`: a public name to a checker
                modules |= {name.name: line.module for name in line.names}
    return modules


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.parent.name)
def test_lazy_names_are_the_checkers_names(path):
    modules = names_in(path)
    package = import_module(".".join(path.relative_to(ROOT).parent.parts))
    assert package.__all__ == sorted(modules)
    for name, module in modules.items():
        assert getattr(package, name) is getattr(import_module(module), name)


def test_every_room_is_looked_at():
    assert {path.parent.name for path in ROOMS} >= {"trl_ext", "ppo", "rewards", "self_training", "reward_modeling"}


@pytest.mark.parametrize(
    ("ours", "theirs", "refused"),
    [(PPOTrainer, GRPOTrainer, {"tools", "environment_factory"}), (RAFTTrainer, SFTTrainer, set(REFUSED))],
)
def test_arguments_are_trls(ours, theirs, refused):
    """A new argument upstream must be named, or refused, before it reaches a user."""
    named, upstream = (inspect.signature(cls).parameters.keys() for cls in (ours, theirs))
    assert upstream - named == refused


def test_ppo_takes_grpos_arguments_by_place_as_far_as_it_does():
    """`PPOTrainer(model, reward, args, train_dataset, eval_dataset)` is GRPOTrainer's call with another config."""
    ours, theirs = (list(inspect.signature(cls).parameters.values()) for cls in (PPOTrainer, GRPOTrainer))
    places = [p.name for p in ours if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert places == [p.name for p in theirs][: len(places)] and places[4] == "eval_dataset"


def test_imitation_reward_trainer_has_reward_trainers_arguments_in_its_order():
    ours, theirs = (inspect.signature(cls).parameters.values() for cls in (ImitationRewardTrainer, RewardTrainer))
    *same, head = [(p.name, p.default, p.kind) for p in ours]
    assert same == [(p.name, p.default, p.kind) for p in theirs]
    assert head == ("imitation_head", None, inspect.Parameter.KEYWORD_ONLY)
