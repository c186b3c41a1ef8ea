"""PPO in two processes, under each engine: where it begins, what it samples, what ends it, and what it does not take."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import ppo_engines_case
import pytest
import torch
from ppo_engines_case import evaluated_first, greedy, wrote
from sharded_case import CLOSE, in_two
from torch import Tensor
from two_processes import run_in_two

ROOT = Path(__file__).parents[1]
CASE = Path(ppo_engines_case.__file__)
HALF = {"per_device_train_batch_size": 4}
NAMES = {"DDP": "one device or data parallelism", "FSDP2": "FSDP2"}
ZERO = {name: f"DeepSpeed {name}" for name in ("ZeRO-2", "ZeRO-3")} if find_spec("deepspeed") else {}
needs_deepspeed = pytest.mark.skipif(not ZERO, reason="needs DeepSpeed: .ci/run deepspeed")
ENGINES = [*NAMES, *(pytest.param(name, marks=needs_deepspeed) for name in ("ZeRO-2", "ZeRO-3"))]
pytestmark = pytest.mark.slow


def unclipped(engine: str) -> dict:
    """DeepSpeed clips policy and critic by one norm."""
    return {"max_grad_norm": 0.0} if engine.startswith("ZeRO") else {}


def as_one(case: Callable, folder: Path, engine: str, **options) -> dict[str, Tensor]:
    """What a case tells of one process, and two that an engine has started tell alike."""
    options |= unclipped(engine)
    one = case(folder / "one", per_device_train_batch_size=8, **options)
    both = in_two(folder / "two", case.__name__, case=CASE.stem, engine=engine, **HALF, **options)
    torch.testing.assert_close(both, one, **CLOSE)
    return one


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("kind", "full"), [("head", True), ("model", False)])
def test_an_evaluation_may_come_first(tmp_path, engine, kind, full):
    """What it says, the rollouts and the weights after it: as one process."""
    as_one(evaluated_first, tmp_path, engine, kind=kind, full=full)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("kind", "full"), [("head", False), ("model", True)])
def test_the_tokens_are_those_of_one_process(tmp_path, engine, kind, full):
    """Each completion's that TRL samples, in both rollouts, and what is learned from them."""
    one = as_one(greedy, tmp_path, engine, kind=kind, full=full)
    assert len([name for name in one if name.endswith(".tokens")]) == 16


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_given_is_refused_in_both(tmp_path, engine):
    in_two(tmp_path / "two", "refuses_input", case=CASE.stem, engine=engine, **HALF)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """One of each engine, in two processes, and of one process."""
    folder = tmp_path_factory.mktemp("checkpoints")
    wrote(folder / "one", per_device_train_batch_size=8)
    for engine in (*NAMES, *ZERO):
        in_two(folder / engine, "wrote", case=CASE.stem, engine=engine, **HALF, **unclipped(engine))
    return {engine: folder / engine / "checkpoint-1" for engine in ("one", *NAMES, *ZERO)}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_of_another_engine(tmp_path, engine, checkpoints):
    """Both are named, and so are the numbers of processes."""
    names = NAMES | ZERO
    said = {
        str(checkpoints[other]): f"it was written under {names[other]}, and now runs under {names[engine]}"
        for other in names.keys() - {engine}
    }
    said[str(checkpoints["one"])] = "it was written by 1 processes, and now their number is 2"
    options = HALF | unclipped(engine)
    in_two(tmp_path / "two", "refuses", case=CASE.stem, engine=engine, checkpoints=said, **options)


KILLS = {
    "DDP": [("rollout", 0), ("rollout", 1), ("checkpoint", 0)],
    "FSDP2": [("checkpoint", 0)],
    "ZeRO-2": [("rollout", 0)],
    "ZeRO-3": [("checkpoint", 0)],
}


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_and_gone_on_with(tmp_path, engine):
    """The other says so; from what is whole, all end as a run that was not killed, to the bit."""
    options = HALF | unclipped(engine)
    for where, rank in KILLS[engine]:
        dead = run_in_two(CASE, tmp_path, "killed", json.dumps({"where": where, "rank": rank} | options), engine)
        assert dead.returncode, dead.stdout
        assert f"process {1 - rank} of 2 no longer hears another one, after step 2 of 3" in dead.stderr
        assert f"the newest is '{tmp_path}/{where}-{rank}/checkpoint-{2 if where == 'rollout' else 1}'" in dead.stderr
    runs = [f"{where}-{rank}" for where, rank in KILLS[engine]]
    on = run_in_two(CASE, tmp_path, "goes_on", json.dumps({"runs": runs} | options), engine)
    assert on.returncode == 0, on.stderr[-3000:]
    assert "returned a view tensor" not in on.stderr  # as if gradients might be wrong


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_torchrun_shows_what_failed_first(tmp_path, engine):
    """On top is the error of the process that failed, and that is what torchrun names as the cause."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", CASE]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, tmp_path, "fails", json.dumps(HALF), engine],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    errors = re.findall(r"^\[rank\d\]: \w*Error: .*$", done.stderr, re.MULTILINE)
    assert errors[0] == "[rank1]: RuntimeError: the service is away", done.stderr
    assert errors[1:] in ([], ["[rank0]: RuntimeError: process 1 of 2 failed: RuntimeError: the service is away"])
    assert re.search(r"Root Cause .*\n.*\n +time .*\n +host .*\n +rank +: 1 ", done.stderr), done.stderr
