"""The table of rows runs, and says what grows."""

import sys

import pytest

from examples.benchmarks.scale import rows

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.mark.parametrize("name", rows.PARTS)
def test_each_part_is_measured(name, tmp_path):
    found = rows.PARTS[name](40, tmp_path, 8)
    assert found["s"] > 0 and found["mib"] >= 0


def test_a_table_has_a_line_of_each(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        rows, "in_its_own_process", lambda name, count, tokens: rows.PARTS[name](count, tmp_path, tokens)
    )
    rows.main(["--rows", "40", "--tokens", "8"])
    head, _, line = capsys.readouterr().out.splitlines()[-3:]
    assert head.count("|") == line.count("|") and line.startswith("| 40 | ")


def test_a_finished_grow_is_one_of_raft(tmp_path):
    files = rows.finished_grow(tmp_path, 25, 4)
    files.write_kept(0, importance=False)
    assert len(rows.KeptRows(files.kept(0))) == 25
