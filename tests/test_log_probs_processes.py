"""What wraps a model must see the head in `label_log_probs`' one call, and so average its gradients too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from log_probs_case import CASES, batch, gradients, model_of
from safetensors.torch import load_file


@pytest.mark.slow
def test_two_processes_have_the_mean_gradients_of_one_with_both_halves(tmp_path):
    root = Path(__file__).parent
    path = os.pathsep.join([str(root), str(root.parent), os.environ.get("PYTHONPATH", "")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(root / "log_probs_case.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for case in CASES:
        one = {name: gradient / 2 for name, gradient in gradients(model_of(case), batch()).items()}
        for rank in range(2):
            torch.testing.assert_close(load_file(tmp_path / f"{case}-{rank}.safetensors"), one, rtol=1e-5, atol=1e-6)
