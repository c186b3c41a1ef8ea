"""What wraps a model must see the head in `label_log_probs`' one call, and so average its gradients too."""

from pathlib import Path

import pytest
import torch
from log_probs_case import CASES, batch, gradients, model_of
from safetensors.torch import load_file
from two_processes import run_in_two


@pytest.mark.slow
def test_two_processes_have_the_mean_gradients_of_one_with_both_halves(tmp_path):
    done = run_in_two(Path(__file__).parent / "log_probs_case.py", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for case in CASES:
        one = {name: gradient / 2 for name, gradient in gradients(model_of(case), batch()).items()}
        for rank in range(2):
            torch.testing.assert_close(load_file(tmp_path / f"{case}-{rank}.safetensors"), one, rtol=1e-5, atol=1e-6)
