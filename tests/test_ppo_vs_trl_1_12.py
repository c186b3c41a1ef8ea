"""The benchmark `ppo_vs_trl_1_12.py`: its clock and counter by hand, its medians, and both critics for real."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny import byte_tokenizer, tiny_llama

from examples.benchmarks.speed import ppo_vs_trl_1_12 as benchmark
from examples.benchmarks.speed.meter import (
    BACKWARD,
    FORWARD,
    GENERATION,
    PASSES,
    SCORING,
    Meter,
    peak_bytes,
    resident_bytes,
)
from examples.benchmarks.speed.work import SPEED, make_speed_work


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_belongs_to_the_innermost_phase():
    clock = Clock()
    meter = Meter(clock)
    clock.now = 5.0  # before the first rollout: nobody's
    meter.begin_rollout()
    meter.base(PASSES)
    clock.now = 6.0
    with meter.phase(BACKWARD):
        clock.now = 8.0
        with meter.phase(SCORING):
            clock.now = 11.0
        clock.now = 15.0
    meter.base(FORWARD)
    clock.now = 20.0
    meter.begin_rollout()
    clock.now = 26.0
    measured = meter.finish(imports=0)
    assert measured["seconds"] is meter.rollouts and measured["memory"] > 0
    assert meter.rollouts == [{PASSES: 1.0, BACKWARD: 2.0 + 4.0, SCORING: 3.0, FORWARD: 5.0}, {FORWARD: 6.0}]


def test_a_phase_may_be_named_by_the_arguments():
    clock = Clock()
    meter = Meter(clock)

    def wait(seconds):
        clock.now += seconds
        return seconds

    meter.begin_rollout()
    timed = meter.timed(wait, lambda seconds: SCORING if seconds > 1 else PASSES)
    assert [timed(1.0), timed(2.0)] == [1.0, 2.0]
    assert meter.rollouts == [Counter({PASSES: 1.0, SCORING: 2.0})]


def test_tokens_are_counted_in_both_directions():
    model, meter = tiny_llama(byte_tokenizer()), Meter()
    meter.count_passes(model)
    ids = torch.ones(2, 3, dtype=torch.long)
    model(input_ids=ids)  # before the first rollout
    meter.begin_rollout()
    with torch.no_grad(), meter.phase(GENERATION):
        model(input_ids=ids)
    model(input_ids=ids).logits.sum().backward()
    assert meter.forward == [{GENERATION: 6, FORWARD: 6}]
    assert meter.backward == [{FORWARD: 6}]


def test_memory_is_this_process_own():
    assert 0 < resident_bytes() <= peak_bytes()


def test_the_first_rollout_warms_up_unless_it_is_alone():
    results = [{"seconds": [{"a": 9.0}, {"a": 1.0}, {"a": 2.0, "b": 1.0}]}, {"seconds": [{"a": 5.0}]}]
    assert benchmark.timed_rollouts(results) == [{"a": 1.0}, {"a": 2.0, "b": 1.0}, {"a": 5.0}]
    # medians of 1, 3 and 5 seconds
    assert benchmark.episodes_per_second([one | {"task": {"batch": 6}} for one in results]) == 2.0


def test_a_result_is_used_again_for_the_same_task_only(tmp_path):
    result = tmp_path / "one.json"
    result.write_text(json.dumps({"task": {"seed": 1}, "score": [2.0]}))
    assert benchmark.run(Path("python"), "none.py", {"seed": 1}, result)["score"] == [2.0]
    with pytest.raises(SystemExit, match="of another task"):
        benchmark.run(Path("python"), "none.py", {"seed": 2}, result)


def test_an_environment_that_exists_is_left_alone(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho 1.12.0\n")  # what it says of its trl
    python.chmod(0o755)
    assert benchmark.make_environment(tmp_path) == python


@pytest.mark.slow
@pytest.mark.parametrize("critic, passes", [("head", (8, 4)), ("model", (13, 8)), ("none", (8, 4))])
def test_passes_of_our_arm(tmp_path, critic, passes):
    """Generation, scoring, reference, policy (and values), 4 epochs (of both models); a backward for each of these."""
    work = make_speed_work(tmp_path / "work", "tiny", prompt_tokens=16, prompts=16)
    task = SPEED | {"folder": str(work), "output_dir": str(tmp_path), "threads": 1, "clock": "cpu"}
    task |= {"batch": 4, "micro_batch": 4, "rollouts": 1, "critic": critic}  # of several, shorter ones would be cut
    result = benchmark.run(Path(sys.executable), "arm_trl_ext", task, tmp_path / "result.json")
    tokens = 4 * (16 + 64)
    counted = tuple(sum(result[way][0].values()) / tokens for way in ("forward", "backward"))
    assert counted == pytest.approx(passes, abs=0.3)  # no pass for the last new token; a completion may end
