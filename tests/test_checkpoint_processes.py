"""Two processes write checkpoints that are whole, whoever is first, and that only two processes go on with."""

from pathlib import Path

import pytest
from checkpoint_case import KINDS, STEPS, make
from two_processes import run_in_two


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_save_and_resume(tmp_path, kind):
    """The first process is late in saving; the run goes on, moved to another folder, from the newest whole checkpoint."""
    done = run_in_two(Path(__file__).parent / "checkpoint_case.py", kind, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"goes on with checkpoint-{STEPS - 2} and passes over checkpoint-{STEPS - 1}: there is no" in done.stderr
    checkpoint = tmp_path / "whole" / f"checkpoint-{STEPS}"
    assert len(list(checkpoint.glob("rng_state_?.pth"))) == 2
    recorded = {"raft": "rows_per_step: 8 then, 4 now"}  # its folder says more of a run
    with pytest.raises(ValueError, match=recorded.get(kind, "written by 2 processes, and now their number is 1")):
        make(kind, tmp_path / "whole").train(resume_from_checkpoint=str(checkpoint))
