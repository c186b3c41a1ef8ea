"""examples/benchmarks/memory/int8_threshold.py: the outlier path matters where there are outliers, and only there."""

import sys

import pytest

from examples.benchmarks.memory import int8_threshold


@pytest.fixture
def table(monkeypatch, capsys):
    def run(*options):
        monkeypatch.setattr(sys, "argv", ["int8_threshold.py", "--window", "64", "--windows", "2", *options])
        int8_threshold.main()
        lines = [
            line.split(" | ") for line in capsys.readouterr().out.splitlines() if "bits" in line or "quant" in line
        ]
        return {cells[0].strip("| "): float(cells[3]) for cells in lines}

    return run


def test_kl_to_full_precision(table):
    kl = table("--outliers", "30")
    assert kl["not quantised"] == 0.0
    assert kl["8 bits, threshold 0.0"] > 4 * kl["8 bits, threshold 6.0 (default)"] > 0
    kl = table("--outliers", "1")
    assert kl["8 bits, threshold 0.0"] < 2 * kl["8 bits, threshold 6.0 (default)"]


def test_a_text_that_is_too_short(table, tmp_path):
    (tmp_path / "short.txt").write_text("hello")
    with pytest.raises(SystemExit, match="the text has 5 tokens, fewer than one --window of 64"):
        table("--text", str(tmp_path / "short.txt"))
