"""Each trainer in two processes: it trains, evaluates, logs once, saves once, is killed, and goes on with the same bits."""

import re
from pathlib import Path

import pytest
from checkpoint_case import KINDS, STEPS
from processes_case import EVALUATED, KILLED_AT, TABLE, trainer_of
from two_processes import run_in_two

from trl_ext.trainer_kit.run_log import LOG, lines
from trl_ext.trainer_kit.run_record import read_record


def in_two(what: str, case: str, folder: Path):
    return run_in_two(Path(__file__).parent / "processes_case.py", what, case, folder)


@pytest.mark.slow
@pytest.mark.parametrize("case", TABLE)
def test_two_processes_are_one_run(tmp_path, case):
    done = in_two("begins", case, tmp_path)
    _has_one_record_and_log(done.stdout, tmp_path / "whole")
    if case in KINDS:
        _refuses_together(done.stdout, tmp_path / "whole", case)
    assert done.returncode and f"no longer hears another one, after step {KILLED_AT} of {STEPS}" in done.stderr
    assert f"the newest is '{tmp_path}/killed/checkpoint-{KILLED_AT}'" in done.stderr
    (tmp_path / "killed").rename(tmp_path / "moved")
    (tmp_path / "moved" / f"checkpoint-{KILLED_AT}" / "rng_state_1.pth").unlink()
    on = in_two("goes_on", case, tmp_path)
    assert on.returncode == 0, on.stderr[-3000:]
    assert f"goes on with checkpoint-{KILLED_AT - 1} and passes over checkpoint-{KILLED_AT}: there is no" in on.stderr
    _is_of_two(tmp_path / "moved", case)


def _has_one_record_and_log(said: str, folder: Path) -> None:
    one = f"0: wrote {1 + STEPS} records and {STEPS} models"  # a record in the folder, and one in each checkpoint
    assert {one, "1: wrote 0 records and 0 models"} <= set(said.splitlines())
    assert read_record(folder)["processes"] == 2
    logged = [line for line in lines(folder / LOG) if line["kind"] == "log"]
    assert [line["step"] for line in logged if "learning_rate" in line][:STEPS] == [*range(1, STEPS + 1)]
    assert {line["step"] for line in logged if "eval_runtime" in line} == {EVALUATED, STEPS}


def _is_of_two(folder: Path, case: str) -> None:
    """One process cannot go on with what two have written."""
    checkpoint = folder / f"checkpoint-{STEPS}"
    assert len(list(checkpoint.glob("rng_state_?.pth"))) == 2
    counted = case in ("raft", "rest")  # whose folder says more of a run
    expected = "rows_per_step: 8 then, 4 now" if counted else "written by 2 processes, and now their number is 1"
    with pytest.raises(ValueError, match=expected):
        trainer_of(case, folder).train(resume_from_checkpoint=str(checkpoint))


def _refuses_together(said: str, folder: Path, case: str) -> None:
    """Or one process would wait for the other."""
    for process, error in (("0", "ValueError: "), ("1", "RuntimeError: process 0 of 2 failed: ValueError: ")):
        refused = re.findall(rf"^{process}: .* refused: (.*)$", said, re.MULTILINE)
        assert len(refused) == 3 and all(one.startswith(error) for one in refused[:2])
        assert "holds a run already" in refused[0] and "weight_decay: 0.0 then, 0.5 now" in refused[1]
        assert "got int" in refused[2]
        assert f"{process}: decays by 0.5" in said
    one = trainer_of(case, folder, weight_decay=0.5, accept_changes=["processes"])
    with pytest.raises(ValueError, match=r"written by 2 processes, and now .*'processes' cannot change within a run"):
        one.train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_two_processes_return_to_one_beginning(tmp_path):
    done = in_two("unseeded", "rest", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    learned = re.findall(r"^\d: learned (-?\d+)$", done.stdout, re.MULTILINE)
    assert len(learned) == 2 and len(set(learned)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ppo", "raft"])
def test_one_processs_error_ends_both(tmp_path, case):
    """Else the other would wait for it until the network's time is over."""
    done = in_two("fails", case, tmp_path)
    assert done.returncode != 0
    assert "RuntimeError: the service is away" in done.stderr
    assert "process 1 of 2 failed: RuntimeError: the service is away" in done.stderr
    assert (tmp_path / "grow-000").is_dir() == (case == "raft")
