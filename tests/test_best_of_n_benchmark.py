"""The best-of-n benchmark on the smallest world, and what its table says."""

import pytest

from examples.benchmarks.reward_models import best_of_n as benchmark
from examples.benchmarks.reward_models import best_of_n_real as real
from examples.benchmarks.reward_models import best_of_n_table as table
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
    assert printed.count("seed 0: ") == 1 and printed.count("| ensemble, min |") == 2 * 3  # tables
    assert "ensemble, mean less control, gold at n = 8: " in printed
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def seed_of(gold: dict[str, list[float]]) -> dict[str, dict]:
    """What is kept of a seed, whose arms differ in gold alone."""
    one = {"n": [1, 2, 4, 8], "kl": [0.0, 0.2, 0.6, 1.2], "proxy": [0.0, 1.0, 2.0, 3.0], "right": [0.5] * 4}
    one |= {"fit": {"peak": None}, "repeated": 0.1, "tied": 0.2}
    names = (table.CONTROL, f"{table.MEMBER} 0", f"{table.MEMBER} 1", *table.ENSEMBLES)
    kept = {name: one | {"gold": gold.get(name, [0.0, 0.0, 0.0, 0.0])} for name in names}
    return kept | {"models": dict.fromkeys(("gold", "control", "member", "correlation"), 0.5)}


def test_differences_are_paired_within_seeds():
    # the ensemble's mean has 1 and 3 at n = 8 and the control 0 and 2: 1 more in both seeds; from n = 1 on it gains 1 and 3
    seeds = [
        seed_of({table.MEAN: [0, 0, 0, 1.0]}),
        seed_of({table.MEAN: [0, 0, 0, 3.0], table.CONTROL: [0, 0, 0, 2.0]}),
    ]
    lines = table.differences(seeds)
    assert lines[0] == "ensemble, mean less control, gold at n = 8: +1.000 ± 0.000 (resolved)"
    assert f"{table.MEAN}: gold at n = 8 less that at n = 1: +2.000 ± 1.000 (not resolved, below 14.083)" in lines


def test_members_are_one_arm():
    seeds = [seed_of({f"{table.MEMBER} 0": [0, 0, 0, 1.0], f"{table.MEMBER} 1": [0, 0, 0, 2.0]})]
    assert table.at(seeds, table.MEMBER, "gold", 3) == [1.5] and len(table.by_arm(seeds[0], table.MEMBER)) == 2
    assert table.over_seeds(seeds, table.MEMBER).gold.tolist() == [0, 0, 0, 1.5]


def test_samples_of_several_files_are_put_together(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def file(name: str, prompts: list[str], texts: list[str]):
        columns = {"prompt": prompts, "completion": texts, "completion_ids": [[1]] * len(texts)}
        pq.write_table(pa.table(columns), tmp_path / name)
        return tmp_path / name

    one, other = file("one.parquet", ["a", "b", "c"], ["1", "2", "3"]), file("two.parquet", ["b", "a"], ["4", "5"])
    rows = real.read_pools([one, other], [{"prompt": prompt} for prompt in "abd"])
    assert [(row["prompt"], row["completions"]) for row in rows] == [("a", ["1", "5"]), ("b", ["2", "4"])]
    with pytest.raises(SystemExit, match=r"as many samples of each closed task, got \[1, 2\]"):
        real.read_pools([one, other], [{"prompt": prompt} for prompt in "abc"])
