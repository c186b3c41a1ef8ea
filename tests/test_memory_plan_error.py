"""The plan against live tensors of real runs: two combinations of examples/benchmarks/memory_plan_error.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "benchmarks"))
from memory_plan_cases import CASES, QUICK, case
from memory_plan_run import compare


@pytest.mark.parametrize(
    "chosen", [case("ppo", "llama-64"), case("reward", "llama-64", bits=8)], ids=["ppo", "reward"]
)
def test_every_phase_is_within_ten_percent(chosen, monkeypatch):
    monkeypatch.setattr("transformers.logging.set_verbosity_error", lambda: None)
    monkeypatch.setattr("transformers.logging.disable_progress_bar", lambda: None)
    for row in compare(chosen, "cpu"):
        assert row["predicted"] == pytest.approx(row["measured"], rel=0.10), row


def test_there_are_enough_combinations_of_every_kind():
    settings = [one.settings for one in CASES]
    assert len(CASES) >= 40 and len({one.name for one in CASES}) == len(CASES) and all(one in CASES for one in QUICK)
    assert {one.get("bits") for one in settings} == {None, 8, 4}
    assert {one["dtype"] for one in settings} == {"float32", "bfloat16"}
    assert {one["method"] for one in settings} == {"ppo", "grpo", "raft", "rest", "reward", "sft"}
