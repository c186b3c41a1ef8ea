"""Processes on machines without a shared disk: two folders, each of which one process takes for its own."""

import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from two_processes import run_in_two

from trl_ext.trainer_kit import machines
from trl_ext.trainer_kit.machines import bits, check_alike, check_loaded, seen

ALONE = SimpleNamespace(num_processes=1, process_index=0, local_process_index=0)
SHARED = "Give all processes one folder, on a disk that all machines share"


@pytest.fixture
def told(request, tmp_path) -> list[str]:
    """What the first process says of the run of a kind; the second ends each sentence as it does."""
    done = run_in_two(Path(__file__).parent / "processes_case.py", "own_disks", request.param, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [re.findall(rf"^{process}: (.*)$", done.stdout, re.MULTILINE) for process in range(2)]
    assert [line[-60:] for line in said[0]] == [line[-60:] for line in said[1]]
    return said[0]


@pytest.mark.slow
@pytest.mark.parametrize("told", ["ppo, value model", "reward"], indirect=True)
def test_each_machine_keeps_what_it_needs_or_all_say_what_is_missing(told):
    """Weights, moments and what a critic has learned are then the same on both, to the bit."""
    unseen, missing, kept, other = told
    assert "process 1 on " in unseen and " does not see in its folder 'run' what process 0 on " in unseen
    assert SHARED in unseen and unseen.endswith("give save_on_each_node=True.")
    assert re.search(r"process 1 on .*: there is no optimizer.pt in it", missing)
    assert kept == "goes on with the same bits"
    assert re.search(r"process 1 on .* has read other numbers than process 0 on .*, of the optimizer's state", other)


@pytest.mark.slow
@pytest.mark.parametrize("told", ["raft"], indirect=True)
def test_grows_need_one_folder(told):
    unseen, on_each, unlike, otherwise, one_folder = told
    for line in (unseen, on_each):
        assert re.search(rf"process 1 on .* does not see .* All processes read its Grows.* {SHARED}\.$", line)
    assert "differs from process 0 on" in unlike and "seed: 0 on process 0, 1 on process 1" in unlike
    assert "resume_from_checkpoint: None on process 0, True on process 1" in otherwise
    assert "save_on_each_node=True: process 0 on" in one_folder and "Leave save_on_each_node out" in one_folder


@pytest.mark.slow
def test_two_machines_share_a_grow_on_one_disk(tmp_path):
    """One of them writes what both map, and takes it away when both have left it; they see it at different times."""
    done = run_in_two(Path(__file__).parent / "processes_case.py", "one_disk", "raft and rest", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for process in range(2):
        assert f"{process}: raft left ['grow-000.parquet', 'grow-001.parquet']" in done.stdout
        assert f"{process}: rest left ['grow-000.parquet']" in done.stdout


def test_a_file_is_waited_for_until_a_drive_shows_it(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "VISIBLE_WITHIN", 0.1)
    with pytest.raises(ValueError, match=r"does not see '.*a', which another process has written, within 0.1 s"):
        seen(tmp_path / "a")
    threading.Timer(0.05, (tmp_path / "a").touch).start()
    monkeypatch.setattr(machines, "VISIBLE_WITHIN", 60)
    assert seen(tmp_path / "a").is_file()


def test_bits_by_hand():
    assert bits(torch.tensor([1, 2, 3])) == 6  # of 8 bytes each, read as they are
    assert bits(torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9], dtype=torch.uint8)) == 0x0807060504030201 + 9
    assert bits(torch.tensor([])) == 0


def test_bits_do_not_depend_on_the_order_and_see_the_last_one():
    numbers = torch.randn(1001, dtype=torch.float64)
    assert bits(numbers) == bits(numbers.flip(0))
    other = numbers.clone()
    other[500] = torch.nextafter(other[500], torch.tensor(9.0, dtype=torch.float64))
    assert bits(other) != bits(numbers)


def test_one_process_is_alike():
    check_alike({"seed": 0}, ALONE, call="f")
    check_loaded({"weights": 1}, ALONE, call="f")
