"""Two processes must take PPO's steps as one does: every mean is over the tokens of both."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from table_case import TABLE, run
from two_processes import run_in_two


def ends(folder: Path, **options) -> list[dict[str, torch.Tensor]]:
    """What each of two processes ends with."""
    folder.mkdir()
    done = run_in_two(Path(__file__).parent / "table_case.py", folder, json.dumps(options))
    assert done.returncode == 0, done.stderr[-3000:]
    return [load_file(folder / f"process-{process}.safetensors") for process in range(2)]


CASES = {
    "head": {"kind": "head", "adaptive_kl": True, "kl_target": 1.0},
    "value model": {"kind": "model"},
    "warm-up": {"kind": "model", "critic_warmup_rollouts": 1},
    "weighted": {"kind": "head", "with_log_probs": True},
    "accumulated, with text": {"kind": "head", "gradient_accumulation_steps": 2, "ptx_coef": 0.5},
}


def batches(options: dict, rows: int) -> dict:
    """Rows per process of an optimizer step, in micro-batches."""
    return {"per_device_train_batch_size": rows // options.get("gradient_accumulation_steps", 1)}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_step_like_one(tmp_path, case):
    """Advantages, returns and values of each completion, and the weights after three steps."""
    options = CASES[case]
    one = run(tmp_path / "one", **options | batches(options, 8))
    first, second = ends(tmp_path / "two", **options | batches(options, 4))
    weights = [name for name in one if name.startswith(("policy.", "critic."))]
    assert len(one) - len(weights) == 4 * len(TABLE)
    torch.testing.assert_close(first | second, one, rtol=0, atol=1e-6)
    assert all(torch.equal(first[name], second[name]) for name in weights)
