import errno
import os
import re
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from trl_ext.generation.sample_files import read_table, sample_schema
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.grow_summary import nothing_kept
from trl_ext.self_training.stage_selection import Selected
from trl_ext.sequences.samples import Sample
from trl_ext.trainer_kit import whole_files
from trl_ext.trainer_kit.whole_files import PARTIAL, remove_leftovers, written_whole


def samples(rows, *, messages: bool = False) -> list[Sample]:
    return [
        Sample(
            row=row,
            sample=0,
            prompt=[{"role": "user", "content": "?"}] if messages else f"prompt {row}",
            completion=[{"role": "assistant", "content": "!"}] if messages else f" answer {row}",
            prompt_ids=[1, 2],
            completion_ids=[3] * (row + 1),
            ended=True,
            generator="transformers",
            seed=row,
        )
        for row in rows
    ]


def written(folder, *, messages: bool = False) -> GrowFiles:
    """Two sampled parts."""
    files = GrowFiles(folder, stage=0)
    schema = sample_schema(pa.infer_type([samples([0], messages=messages)[0]["prompt"]]), "fingerprint")
    for part, rows in enumerate(([0, 1], [2])):
        files.write_sampled(part, samples(rows, messages=messages), schema)
    return files


def score(table: pa.Table) -> pa.Table:
    return table.append_column("score", pa.array([float(row) for row in table["row"].to_pylist()]))


def test_a_grow_from_parts_to_one_file(tmp_path):
    files = written(tmp_path)
    assert files.is_sampled(0) and not files.is_sampled(2)
    for part in range(2):
        files.score(part, score)
    assert not files.sampled(0).exists() and files.is_sampled(0)
    files.finish(2, {"kept": pa.array([0, 1, 2], pa.int32())})
    assert sorted(os.listdir(tmp_path)) == ["grow-000.parquet"]
    table = pq.read_table(files.finished)
    assert table["kept"].to_pylist() == [0, 1, 2] and table["score"].to_pylist() == [0.0, 1.0, 2.0]
    assert table.schema.metadata[b"tokenizer"] == b"fingerprint"


@pytest.mark.parametrize("messages", [False, True])
def test_datasets_reads_parts_and_finished_files(tmp_path, messages):
    files = written(tmp_path, messages=messages)
    parts = load_dataset("parquet", data_files=str(files.parts / "*.parquet"), split="train", cache_dir=tmp_path / "c")
    assert parts["completion_ids"] == [[3], [3, 3], [3, 3, 3]]
    for part in range(2):
        files.score(part, score)
    files.finish(2, {})
    whole = load_dataset("parquet", data_files=str(files.finished), split="train", cache_dir=tmp_path / "c")
    assert whole["row"] == [0, 1, 2] and whole["prompt"] == parts["prompt"]


def test_scoring_again_changes_nothing(tmp_path):
    files = written(tmp_path)
    files.score(0, score)
    files.score(0, lambda table: pytest.fail("scored twice"))


def test_a_file_is_complete_or_absent(tmp_path):
    path = tmp_path / "part.parquet"
    with pytest.raises(RuntimeError), written_whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_an_interrupted_write_leaves_the_former_file(tmp_path):
    path = tmp_path / "part.parquet"
    path.write_text("before")
    with pytest.raises(RuntimeError), written_whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"


def test_a_file_reaches_the_disk_before_its_name(tmp_path, monkeypatch):
    """Renamed before it is synced, a power cut could leave an empty file under the final name."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *args: (calls.append("rename"), replace(*args)))
    with written_whole(tmp_path / "file") as partial:
        partial.write_text("content")
    assert calls == ["fsync", "rename", "fsync"]  # file, name, folder
    calls.clear()
    with written_whole(tmp_path / "read at once", lasting=False) as partial:
        partial.write_text("b")
    assert calls == ["rename"]


def test_a_full_disk_is_named_and_leaves_what_is_complete(tmp_path, monkeypatch):
    files = written(tmp_path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match=r"scored-00000.parquet \(No space left on device\).*make room, then") as raised:
        files.score(0, score)
    assert raised.value.errno == errno.ENOSPC
    assert sorted(os.listdir(files.parts)) == ["sampled-00000.parquet", "sampled-00001.parquet"]


def test_a_folder_that_was_made_for_a_file_goes_with_it(tmp_path):
    with pytest.raises(RuntimeError), written_whole(tmp_path / "new" / "file"):
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.fixture
def no_rename(monkeypatch):
    """As on a mounted drive."""

    def replace(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "replace", replace)


def test_a_grow_on_a_drive_that_cannot_rename(tmp_path, no_rename):
    files = written(tmp_path)
    for part in range(2):
        files.score(part, score)
    files.finish(2, {})
    assert os.listdir(tmp_path) == ["grow-000.parquet"]
    assert pq.read_table(files.finished)["score"].to_pylist() == [0.0, 1.0, 2.0]


def test_a_half_copied_file_is_marked(tmp_path, no_rename, monkeypatch):
    """And taken away with its mark, so that it is absent."""

    class Killed(BaseException):
        pass

    def half(source, target):
        target.write(source.read(2))
        assert sorted(os.listdir(tmp_path)) == ["file", f"file.{os.getpid()}.copying", f"file.{os.getpid()}{PARTIAL}"]
        found.update({path.name: path.read_bytes() for path in tmp_path.iterdir()})
        raise Killed

    found = {}
    monkeypatch.setattr(shutil, "copyfileobj", half)
    with pytest.raises(Killed), written_whole(tmp_path / "file") as partial:
        partial.write_text("content")
    assert os.listdir(tmp_path) == []  # what an error leaves
    for name, content in found.items():  # what a kill leaves
        (tmp_path / name).write_bytes(content)
    assert not remove_leftovers(tmp_path, re.compile("other"))
    assert remove_leftovers(tmp_path, re.compile("file")) and os.listdir(tmp_path) == []


def test_what_can_neither_be_renamed_nor_copied_leaves_the_former_file(tmp_path, no_rename, monkeypatch):
    path, real = tmp_path / "file", Path.open
    path.write_text("before")

    def refuses(self, mode="r", *args, **kwargs):
        if self == path and "w" in mode:
            raise OSError(errno.EACCES, "Permission denied")
        return real(self, mode, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuses)
        with pytest.raises(OSError, match=r"could not write .*file \(Permission denied\).*put that right, then go on"):
            with written_whole(path) as partial:
                partial.write_bytes(b"after")
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_a_drive_that_shows_files_late_is_waited_for(tmp_path, monkeypatch):
    path, asked, real = tmp_path / "file", [], Path.exists
    monkeypatch.setattr(
        Path, "exists", lambda self: real(self) and (self != path or (asked.append(1), len(asked) > 3)[1])
    )
    with written_whole(path) as partial:
        partial.write_text("content")
    assert len(asked) == 4
    monkeypatch.setattr(whole_files, "VISIBLE_WITHIN", 0)
    monkeypatch.setattr(Path, "exists", lambda self: self != path and real(self))
    with pytest.raises(OSError, match="after 0 s the drive does not show it with its 7 bytes"):
        with written_whole(path) as partial:
            partial.write_text("content")


def test_a_folder_that_cannot_be_opened_is_no_fault(tmp_path, monkeypatch):
    """Windows opens none; a file that cannot be opened is one."""
    opened = os.open

    def open_files_only(path, flags, *mode):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", open_files_only)
    with written_whole(tmp_path / "new" / "a.txt") as partial:
        partial.write_text("a")
    assert (tmp_path / "new" / "a.txt").read_text() == "a"
    monkeypatch.setattr(os, "open", lambda path, *_: open_files_only(tmp_path, 0))
    with pytest.raises(PermissionError), written_whole(tmp_path / "b.txt") as partial:
        partial.write_text("b")
    assert not (tmp_path / "b.txt").exists()


@pytest.mark.parametrize("renames", [True, False])
@pytest.mark.parametrize(("number", "written"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_drive_that_cannot_sync_is_no_disk_that_fails(tmp_path, monkeypatch, request, number, written, renames):
    if not renames:
        request.getfixturevalue("no_rename")

    def fsync(descriptor):
        raise OSError(number, "")

    monkeypatch.setattr(os, "fsync", fsync)
    with nullcontext() if written else pytest.raises(OSError, match="could not write"):
        with written_whole(tmp_path / "file") as partial:
            partial.write_text("content")
    assert os.listdir(tmp_path) == ["file"] * written


def test_a_damaged_part_is_named_with_what_to_do(tmp_path):
    files = written(tmp_path)
    files.sampled(1).write_bytes(files.sampled(1).read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"sampled-00001.parquet cannot be read .*Delete this one file and go on"):
        files.score(1, score)
    files.score(0, score)  # the other stays usable


def test_leftovers_of_a_killed_write_are_no_parts(tmp_path):
    files = written(tmp_path)
    leftover = files.parts / f"sampled-00002.parquet.123{PARTIAL}"
    leftover.write_bytes(b"half")
    assert not files.is_sampled(2)
    for part in range(2):
        files.score(part, score)
    files.finish(2, {})
    assert not files.parts.exists()  # with the leftover


def test_reading_what_is_not_there_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("dropped", "said", "unsaid"),
    [
        ({}, "left out beforehand: nothing. Lower the thresholds, or change score_map. The Grow stays", "drop_"),
        ({"unscored": 0, "truncated": 0, "duplicate": 1}, "{'duplicate': 1}. Lower the thresholds", "drop_"),
        ({"unscored": 2, "truncated": 1}, "A sample is unscored where each reward returns None", "thresholds"),
        ({"unscored": 0, "truncated": 3}, "beforehand: {'truncated': 3}. Truncated is what max_comp", "score_map"),
        ({"duplicate": 1, "alike": 2}, "give drop_alike=False", "thresholds"),
        ({"duplicate": 2, "alike": 1}, "give drop_duplicates=False", "thresholds"),
    ],
)
def test_what_is_said_where_nothing_is_kept(tmp_path, dropped, said, unsaid):
    """Only what was left out is called so, and only what would help is advised."""
    files = written(tmp_path)
    for part in range(2):
        files.score(part, score)
    files.finish_selected(2, Selected(np.array([0.0, 1.0, 2.0]), np.zeros(3, np.int32), dropped))
    told = nothing_kept(files)
    assert said in told and unsaid not in told and "The highest score seen is 2;" in told
