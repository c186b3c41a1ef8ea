"""The best-of-n benchmark on the smallest world, and what its table says."""

import pytest

from examples.benchmarks.reward_models import best_of_n as benchmark
from examples.benchmarks.reward_models import bon_models
from trl_ext.demo import stages
from trl_ext.demo.world import load_world

TINY = stages.Scale(sft_rows=64, pairs=64, rollouts=2, batch=8, stages=2, stage_batch=8, held_out=16)


def test_gold_and_proxies_share_no_person():
    one, other = ({entity.subject.split("'")[0] for entity in half} for half in bon_models.halves(load_world()))
    assert one and other and not one & other


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "FULL", TINY)
    monkeypatch.setattr(bon_models, "PAIRS", {"gold": 64, "member": 32})
    flags = ["--output-dir", str(tmp_path), "--seeds", "0", "--n", "8", "--prompts", "6"]
    for _ in range(2):  # the second time from what was kept
        monkeypatch.setattr("sys.argv", ["best_of_n", *flags])
        benchmark.main()
    printed = capsys.readouterr().out
    assert printed.count("seed 0: ") == 1 and printed.count("| ensemble, min |") == 2
    assert "ensemble, mean less control, gold at n = 8: " in printed
    assert (tmp_path / "s0-0.25" / "curves.png").read_bytes().startswith(b"\x89PNG")
