"""The benchmark of imitation with a known gold: its parts by hand, and all of it on the smallest world."""

import doctest
from math import inf

import pytest
from datasets import Dataset

from examples.benchmarks.reward_models import synthetic_gold as benchmark
from examples.benchmarks.reward_models import synthetic_gold_models as models
from examples.benchmarks.reward_models import synthetic_gold_table as table
from trl_ext import LengthIncentive
from trl_ext.demo import stages
from trl_ext.demo.world import load_world, questions
from trl_ext.reward_evaluation import BestOfN

TINY = stages.Scale(sft_rows=64, pairs=64, rollouts=2, batch=8, stages=2, stage_batch=8, held_out=16)


def test_examples_in_docstrings():
    failed, tried = doctest.testmod(benchmark)
    assert tried and not failed


def test_no_question_is_in_two_parts_nor_asked_in_best_of_n():
    """By what is asked, so that other words for it count as the same."""
    world = load_world()
    asked = [world, *(models.part_of(world, part, seed=3) for part in dict.fromkeys(models.PARTS))]
    rows = [{(row["subject"], row["attribute"]) for row in questions(part, held_out=True)} for part in asked]
    assert all(rows) and sum(map(len, rows)) == len(set.union(*rows))
    every = {(row["subject"], row["attribute"]) for row in questions(world, held_out=False)}
    assert set.union(*rows[1:]) == every and 0.4 < len(rows[1]) / len(every) < 0.6


def test_the_gold_s_better_answer_is_chosen():
    columns = {
        "prompt": ["a", "a", "b", "b", "c", "c", "d", "d", "e", "e"],
        "completion": [" one", " two", " one", " two", " one", " one", "", " two", " one", " two"],
        "proxy": [1.0, 3.0, 2.0, 2.0, 1.0, 2.0, 1.0, 2.0, 5.0, 4.0],  # b ties, c repeats, d is empty
        "ended": [True] * 9 + [False],  # e was cut
    }
    two = BestOfN(Dataset.from_dict({}), Dataset.from_dict(columns), 2)
    assert models.labelled(two) == [{"prompt": "a", "chosen": " two", "rejected": " one"}]


def test_a_text_that_repeats_is_scored_once():
    seen = []

    def reward(completions, completion_ended, **columns):
        seen.extend(completions)
        return [float(len(text)) + ended for text, ended in zip(completions, completion_ended, strict=True)]

    texts = [("a", "xx", True), ("a", "y", True), ("a", "xx", True), ("a", "xx", False)]
    assert benchmark.scores_of(reward, texts).tolist() == [3.0, 2.0, 3.0, 2.0] and seen == ["xx", "y", "xx"]
    assert benchmark.scores_of(LengthIncentive(), texts)[0] == 0.01


def test_the_peak_of_proxies_is_that_of_their_mean_curve():
    """d (2 − d) and d (4 − 2 d) are d (3 − 1.5 d) in the mean, whose top is at 1."""
    fits = [{"fit": {"alpha": alpha, "beta": beta}} for alpha, beta in ((2.0, 1.0), (4.0, 2.0))]
    assert table.peak({"single": fits}) == 1.0
    assert table.peak({"single": [{"fit": {"alpha": 1.0, "beta": -0.1}}]}) == inf
    assert table.peaks([{"single": fits}, {"single": [{"fit": {"alpha": 1.0, "beta": -0.1}}]}], 2.0) == (
        "1.00 to never, reached in 1 of 2"
    )


@pytest.mark.parametrize("trunk", ["half", "fresh"])
def test_a_trunk_of_half_the_layers(tmp_path, trunk):
    policy = stages.ASSETS / "policy"
    made = models.AutoModelForCausalLM.from_pretrained(models.trunk_of(trunk, policy, tmp_path / trunk))
    whole = models.AutoModelForCausalLM.from_pretrained(policy)
    assert (made.config.num_hidden_layers, len(made.model.layers), len(whole.model.layers)) == (1, 1, 2)
    weights = (model.model.layers[0].mlp.up_proj.weight for model in (made, whole))
    assert next(weights).equal(next(weights)) == (trunk == "half")
    assert models.trunk_of("some/path", policy, tmp_path).as_posix() == "some/path"


def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "FULL", TINY)
    monkeypatch.setattr(models, "GOLD_PAIRS", 64)
    monkeypatch.setattr(models, "EPOCHS", 1)
    for name, value in {"PAIRS": 32, "PEOPLE": 8, "MEMBERS": 2, "FLIPPED": (0.25,)}.items():
        monkeypatch.setattr(benchmark, name, value)
    flags = ["--output-dir", str(tmp_path), "--seeds", "0", "--n", "8", "--prompts", "4"]
    for _ in range(2):  # the second time from what was kept
        benchmark.main(flags)
    printed = capsys.readouterr().out
    assert printed.count("seed 0: ") == 1 and printed.count("| 25% | 0.1 |") == 2
    assert "25% exchanged, imitation of 0.1 less 0:\n" in printed and "  gold, n = 8: " in printed
    assert (tmp_path / "s0" / "curves-half.png").read_bytes().startswith(b"\x89PNG")
