"""The plan against live tensors of real runs: two combinations of examples/benchmarks/memory/plan_error.py."""

import json
import logging
import re
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from examples.benchmarks.common.live_bytes import leave_peaks
from examples.benchmarks.memory import plan_error
from examples.benchmarks.memory.plan_cases import CARD, CASES, QUICK, case
from examples.benchmarks.memory.plan_error import processes, ran_out, with_slack
from examples.benchmarks.memory.plan_run import compare
from trl_ext.memory_planning.memory_watch import MemoryWatch, card_of


@pytest.mark.parametrize(
    "chosen", [case("ppo", "llama-64"), case("reward", "llama-64", bits=8)], ids=["ppo", "reward"]
)
def test_every_phase_is_within_ten_percent(chosen, monkeypatch):
    monkeypatch.setattr("transformers.logging.set_verbosity_error", lambda: None)
    monkeypatch.setattr("transformers.logging.disable_progress_bar", lambda: None)
    monkeypatch.setattr(logging.getLogger("bitsandbytes"), "setLevel", lambda level: None)
    for row in compare(chosen, "cpu"):
        assert row["predicted"] == pytest.approx(row["measured"], rel=0.10), row


def test_there_are_enough_combinations_of_every_kind():
    settings = [one.settings for one in CASES]
    assert len(CASES) >= 40 and len({one.name for one in CASES}) == len(CASES) and all(one in CASES for one in QUICK)
    assert {one.get("bits") for one in settings} == {None, 8, 4}
    assert {one["dtype"] for one in settings} == {"float32", "bfloat16"}
    assert {one["method"] for one in settings} == {"ppo", "grpo", "raft", "rest", "reward", "sft"}


def test_slack_is_fitted_on_one_half_and_held_against_the_other():
    """By hand: a reserves a tenth more than it allocates; b, which nothing was fitted on, a fifth more than planned."""
    rows = [
        {"case": "a", "phase": "run", "predicted": 100.0, "measured": 100.0, "reserved": 110.0},
        {"case": "b", "phase": "run", "predicted": 100.0, "measured": 105.0, "reserved": 120.0},
        {"case": "c", "phase": "run", "predicted": 10.0, "measured": 10.0, "reserved": 10.5},
        {"case": "d", "phase": "run", "predicted": 100.0, "measured": 105.0, "reserved": 121.0},
    ]
    said = []
    held_out = with_slack(rows, said.append)
    assert [(row["case"], round(row["predicted"], 6), row["measured"]) for row in held_out] == [
        ("b", 110.0, 120.0), ("d", 110.0, 121.0),
    ]  # fmt: skip
    assert "slack fitted on 2 combinations (a, c): 10.0% of what is allocated" in said[0]
    assert ran_out(rows, share=0.1) == ["d"] and "1 of the others run out: ['d']" in said[1]


def test_a_combination_that_fails_loses_no_other(monkeypatch, tmp_path):
    def run(one, device):
        return [{"case": one.name}] if one.settings["method"] == "sft" else 1 / 0

    monkeypatch.setattr(plan_error, "_run", run)
    monkeypatch.setattr(plan_error, "ProcessPoolExecutor", lambda jobs, **_: ThreadPoolExecutor(jobs))
    args = Namespace(device="cpu", jobs=1, json=tmp_path / "rows")
    found, failed = plan_error.run_all(CARD, args)
    assert [row["case"] for row in found] == [one.name for one in CARD if one.settings["method"] == "sft"]
    assert len(failed) == 5 and json.loads(args.json.read_text()) == found


def test_a_trainer_leaves_the_peaks_to_who_measures(monkeypatch):
    """And goes on giving back what sampling has cached, as in a run that nobody measures."""
    given_back = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=None: pytest.fail("begins anew"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))
    for name in ("max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda device=None: 7)
    trainer = SimpleNamespace(memory=MemoryWatch(None, card_of(torch.device("cuda"))))
    leave_peaks(trainer)
    for phase in ("generate", "score", "train"):
        trainer.memory.enter(phase)
    assert given_back == [True]
    without = SimpleNamespace(memory=MemoryWatch(None, card_of(torch.device("cpu"))))
    leave_peaks(without)
    assert without.memory.card is None


def test_on_a_card_no_process_is_a_fork_of_one_that_has_asked_it():
    """bitsandbytes asks while it is imported, and CUDA cannot be used in a fork of who did."""
    assert processes("cuda").get_start_method() == "spawn"
    assert processes("cpu").get_start_method() == "forkserver"


def test_the_readme_says_how_many_runs_its_commands_pick():
    text = " ".join((Path(plan_error.__file__).parent / "README.md").read_text(encoding="utf-8").split())
    commands = [words.split() for words in re.findall(r"--only ([a-z0-9_\- ]+?)(?:  ?#|`| 20\d\d-)", text)]
    picked = [[case for case in CASES if any(word in case.name for word in words)] for words in commands]
    first, second, decoders = picked
    apart = [case for case in first if case in second]
    assert f"Of its {len(first)} runs the {len(first) - len(apart)} of PPO" in text and len(apart) == 8
    assert f"{len(second)} runs of the real trainers" in text and len(decoders) == 4 * 7
