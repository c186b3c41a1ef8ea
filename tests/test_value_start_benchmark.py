"""The benchmark of the value model's start on the smallest world, and what its table says."""

import pytest

from examples.benchmarks.reward_models import value_start as benchmark
from trl_ext.demo import stages

TINY = stages.Scale(sft_rows=64, pairs=64, rollouts=2, batch=8, stages=2, stage_batch=8, held_out=16)


def test_only_the_first_rollouts_decide():
    one = {"explained_variance": [0.1, 0.2, 0.3, 0.4, 0.5, -9.0], "score": [9.0, 9.0, 9.0, 1.0, 2.0, 3.0]}
    assert [measure(one) for measure in benchmark.MEASURES.values()] == pytest.approx([0.3, 0.1, -9.0, 2.0])


def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "FULL", TINY)
    for name, value in {"PAIRS": 32, "REFERENCES": 8, "BATCH": 8}.items():
        monkeypatch.setattr(benchmark, name, value)
    flags = ["--output-dir", str(tmp_path), "--seeds", "0", "--rollouts", "2"]
    for _ in range(2):  # the second time from what was kept
        benchmark.main(flags)
    printed = capsys.readouterr().out
    assert printed.count("seed 0: ") == 1 and printed.count("| policy with a fresh head |") == 2
    assert f"{benchmark.WITH} less {benchmark.WITHOUT}:\n  explained variance, first 5 rollouts: " in printed
    assert (tmp_path / "s0" / "reward-0.1" / "model.safetensors").exists()
