"""The benchmarks `ablation.py` and `vs_grpo_rloo.py`: clock, measures and reports by hand, arms on the smallest models."""

import argparse
import doctest
import json
from dataclasses import fields

import numpy as np
import pytest
from datasets import Dataset
from rich.console import Console
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model

from examples.benchmarks.common import over_seeds
from examples.benchmarks.ppo import ablation, report, runs, vs_grpo_rloo
from examples.benchmarks.ppo.picture import curves_of, draw
from examples.benchmarks.ppo.tasks import ContinuedReward, Task
from trl_ext import LearnedReward, PPOConfig, PPOTrainer
from trl_ext.trainer_kit import resampling


def result(*points: tuple[float, float, float], variance=()) -> dict:
    """Points by clock, rollouts and score; KL is as high as the score."""
    rows = [{"clock": c, "rollouts": r, "reward": s, "judge": s, "kl": s, "length": 5} for c, r, s in points]
    return {"points": rows, "explained_variance": list(variance), "seconds": 1.0}


@pytest.fixture
def task(tmp_path) -> Task:
    tokenizer = byte_tokenizer()
    for part in (tokenizer, tiny_llama(tokenizer)):
        part.save_pretrained(tmp_path / "start")
    for part in (tokenizer, tiny_reward_model(tokenizer)):
        part.save_pretrained(tmp_path / "reward")
    reward = LearnedReward(str(tmp_path / "reward"))
    prompts = Dataset.from_dict({"prompt": ["a b", "c d e"] * 64})
    held_out = [
        {"prompt": "a b"},
        {"prompt": "Where is it?", "attribute": "pet.bed", "answer": "barn"},
        {"prompt": "c d"},
    ]
    return Task(tmp_path / "start", reward, reward, prompts, held_out, 6, seed=0)


@pytest.mark.parametrize("module", [over_seeds, report, resampling, runs])
def test_examples_in_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert tried and not failed


@pytest.mark.parametrize(
    "freedom, upper, middle", [(1, 12.706, 1.376), (2, 4.303, 1.061), (4, 2.776, 0.941), (30, 2.042, 0.854)]
)
def test_what_few_seeds_can_show(freedom, upper, middle):
    """By the printed table of Student's t."""
    assert resampling.errors_to_see(freedom) == pytest.approx(upper + middle, abs=2e-3)


def test_many_show_what_the_normal_distribution_says():
    assert resampling.errors_to_see(1e6) == pytest.approx(1.96 + 0.8416, abs=1e-3)
    assert resampling.errors_to_see(1000) == pytest.approx(resampling.errors_to_see(1001), abs=0.01)
    assert resampling.errors_to_see(0) == float("inf")


def test_three_errors_are_resolved_of_many_and_not_of_five():
    """Both are 3.2 standard errors from 0."""
    five = [3.2 * 0.5 / 5**0.5 + d for d in (-0.5, -0.5, 0.0, 0.5, 0.5)]
    assert "(not resolved, below" in over_seeds.paired_difference(five, [0.0] * 5)
    assert over_seeds.paired_difference(five * 20, [0.0] * 100).endswith("(resolved)")


def test_an_error_between_groups_by_hand():
    """Mean 2; sums of deviations −1 − 1 + 3 = 1 of three, and −1 of one: √(2/1 · 2) / 4."""
    assert over_seeds.standard_error([1.0, 1.0, 5.0, 1.0], "aaab") == pytest.approx(0.5)
    assert over_seeds.standard_error([1.0, 2.0, 5.0], "abc") == pytest.approx(np.std([1, 2, 5], ddof=1) / 3**0.5)


def test_a_measure_between_two_looks():
    assert report.value_at(result((0, 0, 1.0), (10, 4, 3.0)), "judge", 3, by="rollouts") == 2.5


def test_differences_are_within_seeds():
    """Seeds that differ by 10 do not widen a difference of 1 in each."""
    ours = [result((0, 0, 0.0), (1, 1, 3.0)), result((0, 0, 0.0), (1, 1, 13.0))]
    base = [result((0, 0, 0.0), (1, 1, 2.0)), result((0, 0, 0.0), (1, 1, 12.0))]
    assert report.differences(ours, base, lambda one: one["points"][-1]["judge"]) == "+1.00 ± 0.00 (2/2)"


def test_a_cheaper_arm_is_also_compared_at_equal_rollouts():
    """It ends higher by making twice as many rollouts; per rollout it is no better."""
    cheap, dear = result((0, 0, 0.0), (5, 10, 1.0), (10, 20, 2.0)), result((0, 0, 0.0), (10, 10, 1.0))
    assert report.equal_rollouts([cheap], [dear], "judge") == "+0.00 ± 0.00 (0/1)"


def test_explained_variance_of_the_second_half_and_of_no_critic():
    assert report.foreseen(result((0, 0, 0), variance=[-1.0, 0.0, 0.2, 0.4])) == pytest.approx(0.3)
    assert report.foreseen(result((0, 0, 0))) != report.foreseen(result((0, 0, 0)))  # NaN


def test_tables_have_the_start_and_every_arm_once():
    found = {name: [result((0, 0, 0.0), (1, 1, score))] * 2 for name, score in (("base", 1.0), ("other", 3.0))}
    console = Console(record=True, width=240)
    report.main_table(found, "title", console, kl=3.0)
    report.difference_table(found, "base", console, kl=3.0)
    lines = [line.split("│")[1].strip() for line in console.export_text().splitlines() if line.startswith("│")]
    assert lines == ["start", "base", "other", "other"]
    assert "closed right" not in console.export_text()  # no look has it


def test_the_picture_ends_where_the_first_run_does(tmp_path):
    runs = [result((0, 0, 0.0), (10, 4, 1.0)), result((0, 0, 0.0), (12, 4, 1.2))]
    times, curves = curves_of(runs, count=3)
    assert times.tolist() == [0, 5, 10]
    assert curves["judge"] == pytest.approx(np.array([[0, 0.5, 1.0], [0, 0.5, 1.0]]))
    draw({"arm": runs, "one run": runs[:1]}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_kl_to_the_start_is_zero_before_training_and_more_after_a_change(task):
    tokenizer = task.tokenizer()
    start, moved = tiny_llama(tokenizer), tiny_llama(tokenizer)
    measures = runs.answers_to_prompts(moved, start, tokenizer, task)
    assert measures["kl"] == 0 and measures["right"] == 0 and measures["length"] <= 6
    moved.lm_head.weight.data[ord("a") % 100] += 0.5
    assert runs.answers_to_prompts(moved, start, tokenizer, task)["kl"] > 0


def test_trl_s_completions_are_scored_as_they_continue_their_prompts(task):
    seen = {}

    def reward(**columns):
        seen.update(columns)
        return [0.0, 0.0]

    tokenizer = task.tokenizer()
    ids = [tokenizer(" ok")["input_ids"] + [tokenizer.eos_token_id], tokenizer(" so")["input_ids"]]
    ContinuedReward(reward, tokenizer)(prompts=["a", "b"], completions=["ok", "so"], completion_ids=ids, other=1)
    assert seen == {"prompts": ["a", "b"], "completions": [" ok", " so"], "completion_ended": [True, False]}


@pytest.mark.parametrize("arm", [*ablation.ARMS, *ablation.BESIDE])
def test_arms_of_the_ablation_differ_in_what_they_say(task, tmp_path, arm):
    options = (ablation.ARMS | ablation.BESIDE)[arm]
    trainer, full = (ablation.ppo_trainer(some, task, tmp_path) for some in (options, {}))
    differ = {f.name for f in fields(PPOConfig) if getattr(trainer.args, f.name) != getattr(full.args, f.name)}
    assert differ - {"logging_steps"} == set(options) - {"value_model"}
    assert trainer.critic.reads_policy == (options.get("value_model", "reward") is None)


@pytest.mark.parametrize("arm", vs_grpo_rloo.ARMS)
def test_every_method_takes_one_batch_and_stops_when_its_time_is_over(task, tmp_path, arm, monkeypatch):
    monkeypatch.setattr(vs_grpo_rloo, "BATCH", 8)
    monkeypatch.setattr(ablation, "BATCH", 8)
    options = vs_grpo_rloo.TUNED["demo"][vs_grpo_rloo.ARMS[arm]["method"]] | vs_grpo_rloo.ARMS[arm]
    trainer = vs_grpo_rloo.trainer_of(options, task, tmp_path)
    found = runs.train(trainer, runs.Looks(task, budget=0.0, every=1.0))
    assert [point["rollouts"] for point in found["points"]] == [0, 1]
    assert trainer.state.global_step == trainer.args.num_iterations
    assert bool(found["explained_variance"]) == isinstance(trainer, PPOTrainer)


def test_memory_counts_weights_and_a_value_model(task, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "BATCH", 8)
    head, model = (
        vs_grpo_rloo.peak_bytes(vs_grpo_rloo.ARMS[arm] | {"num_iterations": 1}, task, tmp_path)
        for arm in ("PPO (head)", "PPO (value model)")
    )
    assert 0 < head < model


def test_a_result_on_disk_is_not_made_again_and_belongs_to_its_flags(tmp_path):
    args = argparse.Namespace(output_dir=tmp_path, seeds=[3], budget=1.0, only=None, arms=["arm"])
    file = runs.result_file(tmp_path, "arm", 3)
    file.parent.mkdir()
    runs.write_result(file, {"points": []}, args)
    assert runs.results({"arm": {}}, args) == {"arm": [json.loads(file.read_text())]}
    args.budget = 2.0
    with pytest.raises(SystemExit, match=r"was made with \{'budget': '1.0'\}.*Give another --output-dir"):
        runs.results({"arm": {}}, args)


def test_sentiment_needs_its_files():
    with pytest.raises(SystemExit):
        vs_grpo_rloo.parse(["--output-dir", "x", "--task", "sentiment"])
