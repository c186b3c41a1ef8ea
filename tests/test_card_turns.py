"""Who is on the card when: the order of the calls, told by an engine that notes what it is told. Not run on a card."""

import json
from contextlib import contextmanager

import pytest
from torch import nn

from trl_ext.generation import card_turns
from trl_ext.generation.card_turns import vllms_turn
from trl_ext.generation.vllm_process import VLLMProcess


@pytest.fixture
def steps(monkeypatch) -> list[str]:
    noted: list[str] = []

    @contextmanager
    def off(model):
        noted.append("weights off")
        try:
            yield
        finally:
            noted.append("weights back")

    monkeypatch.setattr(card_turns, "off_the_card", off)
    return noted


class Noting:
    def __init__(self, steps: list[str]):
        self.steps = steps

    def sleep(self):
        self.steps.append("asleep")


def waking(steps: list[str]):
    def wake():
        steps.append("awake")
        return Noting(steps)

    return wake


def test_they_take_turns(steps):
    with vllms_turn(nn.Linear(1, 1), waking(steps)):
        steps.append("samples")
    assert steps == ["weights off", "awake", "samples", "asleep", "weights back"]


def test_also_where_sampling_fails(steps):
    with pytest.raises(KeyError), vllms_turn(nn.Linear(1, 1), waking(steps)):
        raise KeyError
    assert steps == ["weights off", "awake", "asleep", "weights back"]


def test_the_weights_come_back_where_vllm_does_not_start(steps):
    def wake():
        raise RuntimeError

    with pytest.raises(RuntimeError), vllms_turn(nn.Linear(1, 1), wake):
        pass
    assert steps == ["weights off", "weights back"]


WORKER = """
import json, os, sys
with os.fdopen(int(sys.argv[2]), "w") as answers:
    print(json.dumps({"done": True}), file=answers, flush=True)
    for line in sys.stdin:
        open(sys.argv[1] + ".told", "a").write(line)
        if "wake" in line and os.path.exists(sys.argv[1] + ".dies"):
            sys.exit(1)
        print(json.dumps({"done": True}), file=answers, flush=True)
"""


@pytest.mark.parametrize(("sleeps", "told"), [(True, ["sleep", "wake"]), (False, [])])
def test_what_vllms_process_is_told(tmp_path, monkeypatch, sleeps, told):
    """Nothing on a CPU, where it is not started to sleep, and none once it has ended."""
    process = process_of(tmp_path, monkeypatch, {"enable_sleep_mode": True} if sleeps else {})
    process.sleep()
    assert process.wakes()
    noted = tmp_path / "its own" / "engine.json.told"
    lines = noted.read_text().splitlines() if noted.exists() else []
    assert [json.loads(line)["do"] for line in lines] == told
    process.close()
    process.sleep()
    assert not process.wakes() and not (tmp_path / "its own").exists()


def test_one_that_dies_when_it_is_woken_says_so(tmp_path, monkeypatch):
    process = process_of(tmp_path, monkeypatch, {"enable_sleep_mode": True})
    (tmp_path / "its own" / "engine.json.dies").touch()
    assert not process.wakes() and not process.is_alive


def process_of(tmp_path, monkeypatch, engine: dict) -> VLLMProcess:
    (tmp_path / "noting_worker.py").write_text(WORKER)
    monkeypatch.setattr("trl_ext.generation.vllm_process.WORKER", "noting_worker")
    (tmp_path / "its own").mkdir()
    return VLLMProcess(engine, {"PYTHONPATH": str(tmp_path)}, tmp_path / "its own")
