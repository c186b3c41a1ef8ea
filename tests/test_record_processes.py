"""Two processes have one record, which the first writes, and refuse together, or one would wait for the other."""

import re
from pathlib import Path

import pytest
from checkpoint_case import KINDS, make
from two_processes import run_in_two

from trl_ext.trainer_kit.run_record import read_record


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_have_one_record(tmp_path, kind):
    done = run_in_two(Path(__file__).parent / "record_case.py", kind, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"process 0 wrote 2", "process 1 wrote 0"} <= set(
        done.stdout.splitlines()
    )  # in the folder and in a checkpoint
    for process, error in (("0", "ValueError: "), ("1", "RuntimeError: process 0 of 2 failed: ValueError: ")):
        refused = re.findall(rf"^process {process} refused: (.*)$", done.stdout, re.MULTILINE)
        assert len(refused) == 3 and all(said.startswith(error) for said in refused[:2])
        assert "holds a run already" in refused[0] and "weight_decay: 0.0 then, 0.5 now" in refused[1]
        assert "got int" in refused[2]
        assert f"process {process} decays by 0.5" in done.stdout
    assert read_record(tmp_path)["processes"] == 2
    one = make(kind, tmp_path, weight_decay=0.5, accept_changes=["processes"])
    with pytest.raises(ValueError, match=r"written by 2 processes, and now .*'processes' cannot change within a run"):
        one.train(resume_from_checkpoint=True)
