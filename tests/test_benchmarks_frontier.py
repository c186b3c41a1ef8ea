"""examples/benchmarks/frontier: what its numbers mean, and that every arm runs to its budget on the smallest world."""

import json
from math import isnan, log
from types import SimpleNamespace

import numpy as np
import pytest

from examples.benchmarks.frontier import arms, best_of, frontier, passes, picture, setting, table
from examples.benchmarks.frontier.looks import Looks
from examples.benchmarks.reward_models import bon_models
from trl_ext.demo import stages
from trl_ext.demo.world import questions

TINY = stages.Scale(sft_rows=64, pairs=64, rollouts=2, batch=8, stages=2, stage_batch=8, held_out=16)
RUN = [
    {"kl": 0.0, "gold": 0.0, "proxy": 0.0, "right": 0.5},
    {"kl": 1.0, "gold": 1.0, "proxy": 1.0, "right": 0.5},
    {"kl": 4.0, "gold": 0.0, "proxy": 3.0, "right": 0.5},
]


def test_scores_are_read_off_between_looks_in_the_root_of_kl():
    assert table.between(RUN, "gold", 2.25) == pytest.approx(0.5)  # √2.25 is half way from 1 to 2
    assert table.at(RUN, "gold", 0.81) == pytest.approx(0.9)
    assert table.at(RUN, "kl", 2.0, by="proxy") == pytest.approx(2.5)
    assert table.between(RUN, "gold", 0.25) == pytest.approx(0.5)


def test_nobody_knows_where_nobody_looked():
    assert isnan(table.at(RUN, "gold", 5.0)), "the run never gets there"
    assert isnan(table.at(RUN, "gold", 2.25)), "the looks are at 1 nat and at 4"
    assert table.tuning_value(RUN, 5.0) == (0.0, 4.0)


def test_all_arms_begin_at_the_start_in_its_deviations():
    best = {"arm": arms.BEST_OF_N, "centre": {"gold": [1.0, 2.0], "proxy": [0.0, 1.0]}}
    best["points"] = [{"kl": 0.0, "gold": 1.0, "proxy": 0.0}, {"kl": 0.2, "gold": 2.0, "proxy": 1.0}]
    other = {"arm": "PPO", "points": [{"kl": 3.0, "gold": 5.0, "proxy": 2.0}]}
    assert [point["gold"] for point in table.centred(best, best)["points"]] == [0.0, 0.5]
    assert [point["gold"] for point in table.centred(other, best)["points"]] == [0.0, 2.0]


def test_best_of_two_by_hand():
    proxy, gold = np.array([[0.0, 1.0]]), np.array([[5.0, 3.0]])
    found = best_of.point(2, proxy, gold, np.array([[1.0, 0.0]]), np.array([["a", "b"]]))
    assert (found["proxy"], found["gold"], found["right"]) == (1.0, 3.0, 0.0)
    assert found["kl"] == pytest.approx(log(2) - 0.5)
    alike = best_of.point(2, proxy, gold, np.array([[1.0, 0.0]]), np.array([["a", "a"]]))
    assert alike["kl_shares"] == 0.0 < found["kl_shares"] <= found["kl"]


def test_passes_of_those_that_sample():
    assert passes.online(1, before=True) == 2 + 1 + 1 + 3  # RLOO: sampled, scored; reference; before; trained
    assert passes.online(4, before=True) == 16


def test_a_run_is_looked_at_between_batches_of_rollouts_and_ends_at_its_budget():
    spent, control = [10.0], SimpleNamespace(should_training_stop=False)
    looks = Looks(lambda model: {}, lambda: spent[0], 110.0, steps=2)
    looks.on_step_begin(None, None, control)
    ended = []
    for step, cost in enumerate((11.0, 20.0, 21.0, 32.0, 40.0, 110.0), start=1):
        spent[0] = cost
        looks.on_step_end(None, SimpleNamespace(global_step=step), control, model=None)
        ended.append(control.should_training_stop)
    assert [point["cost"] for point in looks.points] == [20.0, 32.0, 110.0]  # a tenth, then the next share, then all
    assert ended == [False] * 5 + [True]


def test_the_picture_stays_small(tmp_path):
    found = {arm: [{"points": RUN}] * 2 for arm in arms.ORDER}
    picture.draw(found, tmp_path / "frontier.png", kl=2.0)
    written = (tmp_path / "frontier.png").read_bytes()
    assert written.startswith(b"\x89PNG") and len(written) < 150_000
    assert set(picture.COLOURS) == set(arms.ORDER)


@pytest.mark.slow
def test_the_benchmark_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "FULL", TINY)
    monkeypatch.setattr(bon_models, "PAIRS", {"gold": 32, "member": 16})
    monkeypatch.setattr(setting, "PAIRS", {"member": 16})
    monkeypatch.setattr(setting, "questions", lambda *args, **kwargs: questions(*args, **kwargs)[::14])
    for name, value in {"BATCH": 16, "STAGE": 8, "POOL": 8, "PAIRS": 8}.items():
        monkeypatch.setattr(arms, name, value)
    monkeypatch.setitem(arms.STAGED["ReST"][2], "thresholds", [0.1, 0.2, 0.3])  # few are above higher ones
    flags = ["--output-dir", str(tmp_path), "--seeds", "0", "--samples", "1", "--budget", "2e3"]
    for _ in range(2):  # the second time from what was kept
        frontier.main(flags)
    printed = capsys.readouterr().out
    for arm in arms.ORDER:
        assert printed.count(f"seed 0, {arm}: ") == 1
        result = json.loads((tmp_path / "seed-0" / f"{arm}.json").read_text())
        if arm in arms.ARMS:
            last = result["points"][-1]
            assert last["cost"] >= 0.5 * 2e3 and last["kl"] > 0 and last["perplexity"] > 1, arm
    assert "PPO − RLOO: gold at 1 nat" in printed and printed.count("One seed: ") == 2
    with pytest.raises(SystemExit, match="was made with"):
        frontier.main([*flags, "--budget", "4e3"])
