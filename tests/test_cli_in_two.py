"""`torchrun` and `accelerate launch` with a command: two processes on a CPU that train, are stopped and go on; one speaks."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import byte_tokenizer, tiny_llama

ROOT = Path(__file__).parents[1]
PATIENCE = 280  # seconds, after which each process shows where it is
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    "accelerate launch": [
        "accelerate.commands.launch",
        *("--multi_gpu", "--num_processes=2", "--num_machines=1"),
        *("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"),
    ],
}
IN_EVERY_PROCESS = f"""
import faulthandler, signal
faulthandler.dump_traceback_later({PATIENCE}, exit=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background would not listen
"""
YAML = """
model_name_or_path: model
dataset_name: prompts.jsonl
reward_funcs: [rewards.py:length]
output_dir: out
max_completion_length: 4
per_device_train_batch_size: 2
learning_rate: 1e-3
logging_steps: 1
max_steps: 100000
report_to: none
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_llama(byte_tokenizer()).save_pretrained("model")
    byte_tokenizer().save_pretrained("model")
    rows = [{"prompt": f"say {word}"} for word in ("it", "that", "so", "more")] * 4
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("rewards.py").write_text(
        "def length(completions, **columns): return [float(len(text)) for text in completions]"
    )
    Path("run.yaml").write_text(YAML)
    Path("path").mkdir()
    Path("path/sitecustomize.py").write_text(IN_EVERY_PROCESS)
    return tmp_path


def launched(launcher: str, *options: str, until: Callable[[], bool] | None = None) -> tuple[int, str]:
    """Exit code of the launcher and what all have said; once `until` says so, it gets Ctrl-C."""
    path = os.pathsep.join(["path", str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with open("told", "w+") as told:
        command = [
            sys.executable,
            "-m",
            *LAUNCHERS[launcher],
            "-m",
            "trl_ext.cli",
            "ppo",
            "--config",
            "run.yaml",
            *options,
        ]
        process = subprocess.Popen(command, env=os.environ | environment, stdout=told, stderr=subprocess.STDOUT)
        while until is not None and not until() and process.poll() is None:
            time.sleep(0.1)
        if until is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
        code = process.wait(PATIENCE + 20)
        told.seek(0)
        return code, told.read()


def has_made_a_step() -> bool:
    log = Path("out/_trl_ext_log.jsonl")
    return log.is_file() and '"kind": "log"' in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("begins", "goes_on"), [tuple(LAUNCHERS)])
def test_two_processes_are_stopped_and_go_on(begins, goes_on, here):
    code, told = launched(begins, until=has_made_a_step)
    assert code and told.count("Stopping after this step, with a checkpoint.") == 1, told
    assert told.count("trl-ext ppo: stopped after step ") == 1 and told.count("no accelerator is at hand") == 1, told
    (checkpoint,) = Path("out").glob("checkpoint-*")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}

    step = int(checkpoint.name.partition("-")[2])
    code, told = launched(goes_on, "--max_steps", str(step + 2), "--accept_changes", "max_steps")
    assert code == 0 and told.count("Saved in out.") == 1 and f"step {step + 2}/{step + 2}: trained" in told, told
    assert told.count(f"step {step + 1}/{step + 2}: ") == 1 and "it/s" not in told, told
    assert Path(f"out/checkpoint-{step + 2}").is_dir() and Path("out/model.safetensors").is_file()


@pytest.mark.slow
def test_bad_input_is_said_once(here):
    code, told = launched("torchrun", "--dataset_name", "none.jsonl")
    assert code and told.count("trl-ext ppo: error: --dataset_name none.jsonl: there is no such file.") == 1, told
    assert "exitcode  : 2" in told
