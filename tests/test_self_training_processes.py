"""Two processes must select what one selects, and take its step."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from self_training_case import trainer
from two_processes import run_in_two

from trl_ext import ReSTTrainer

COMPLETIONS = {"completion": [" on", None, " so", " no", " up", " it", None, " hm"]}  # tokenised by each process
HELD_OUT = {"prompt": ["where?", "when?", "how?"], "completion": [" there", " at noon, or so", " so"]}
STEP = {
    "thresholds": [0.2],
    "score_map": "none",
    "columns": COMPLETIONS,
    "num_stages": 1,
    "improve_steps": 1,
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "learning_rate": 0.1,
    "beta": 0.1,
    "prompts_per_part": 3,
}
SCRIPT = f"""
import sys
from datasets import Dataset
from self_training_case import trainer
from trl_ext import ReSTTrainer

held_out = Dataset.from_dict({HELD_OUT})
one = trainer(
    sys.argv[1], ReSTTrainer, per_device_train_batch_size=4, ddp_backend="gloo", eval_dataset=held_out, **{STEP}
)
one.train()
one.save_model(sys.argv[1])
found = one.evaluate()
score, loss = found["eval_score"], found["eval_loss"]
print(f"\\neval_score {{one.accelerator.process_index}} {{score}} of loss {{loss}}\\n", end="", flush=True)
"""


def in_two(script: str, folder: Path) -> subprocess.CompletedProcess:
    file = folder / "step.py"
    file.write_text(f"{script}\nfrom two_processes import leave\nleave()\n")
    return run_in_two(file, folder / "run")


@pytest.mark.slow
def test_two_processes_grow_select_and_step_like_one(tmp_path):
    done = in_two(SCRIPT, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    one = trainer(tmp_path / "one", ReSTTrainer, per_device_train_batch_size=8, **STEP)
    one.train()
    ours, theirs = (pq.read_table(tmp_path / name / "grow-000.parquet") for name in ("one", "run"))
    for name in ("row", "sample", "completion_ids", "score", "kept"):
        assert ours[name].to_pylist() == theirs[name].to_pylist()
    weights = {name: p for name, p in one.model.state_dict().items() if name != "lm_head.weight"}
    trained = {name: p for name, p in load_file(tmp_path / "run" / "model.safetensors").items() if name in weights}
    torch.testing.assert_close(trained, weights, atol=1e-6, rtol=1e-4)
    scores = re.findall(r"^eval_score \d ([\d.]+) of loss ([\d.]+)", done.stdout, re.MULTILINE)
    assert len(scores) == 2 and len(set(scores)) == 1  # both processes know the score of all held-out prompts
    loss = one.evaluate(Dataset.from_dict(HELD_OUT))["eval_loss"]
    assert float(scores[0][1]) == pytest.approx(
        loss, rel=1e-5
    )  # of three rows, some of which two processes read twice


@pytest.mark.slow
def test_the_error_of_the_process_that_failed_comes_first(tmp_path):
    """In what `torchrun` shows of both, which ends one as soon as the other has ended."""
    case = Path(__file__).parent / "processes_case.py"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(case), "fails", "rest", str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    said = done.stderr
    own, cause = said.index("RuntimeError: the service is away"), said.index("Root Cause")
    assert done.returncode and "process 1 of 2 failed: " not in said[: own + 1]
    assert re.search(r"rank +: 1 ", said[cause:]), said[cause:]
