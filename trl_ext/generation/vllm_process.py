"""The process in which vLLM runs: started, watched, ended."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trl_ext.generation.protocol import Part
from trl_ext.generation.vllm_worker import part_file

POLL = 0.1  # seconds between looks for finished parts
PATIENCE = 30  # seconds that the process gets to end
LOG_TAIL = 4000  # characters
DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class VLLMError(ChildProcessError, RuntimeError):
    """vLLM's process has failed; the message ends with the end of its output."""


def environment(device: torch.device, spec: dict[str, Any]) -> dict[str, str]:
    """Of vLLM's process: it is alone, and sees the card that the policy was on, unless it shall spread over several.

    Without a process of its own for the engine, nothing of vLLM outlives the worker, and its scheduling is repeatable.
    """
    variables = {name: value for name, value in os.environ.items() if name not in DISTRIBUTED}
    variables.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if device.type == "cuda" and spec["engine"].get("tensor_parallel_size", 1) == 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        variables["CUDA_VISIBLE_DEVICES"] = names[device.index or 0]
    return variables


@contextmanager
def worker(folder: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen]:
    """vLLM's process, with its output in worker.log; ended when done with, whatever happens."""
    command = [sys.executable, "-m", "trl_ext.generation.vllm_worker", str(folder / "spec.json")]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=variables)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdin.close()


def finished_parts(process: subprocess.Popen, parts: list[Part], folder: Path) -> Iterator[tuple[Part, list[list]]]:
    """Each part with its token ids, as its file appears."""
    missing = {part.index: part for part in parts}
    while missing:
        has_ended = process.poll() is not None  # asked first: what it wrote before it ended still counts
        for index in [index for index in missing if part_file(folder, index).exists()]:
            answers = json.loads(part_file(folder, index).read_text())
            part_file(folder, index).unlink()
            yield missing.pop(index), answers
        if missing and has_ended:
            log = (folder / "worker.log").read_text(errors="replace")[-LOG_TAIL:]
            raise VLLMError(
                f"VLLMGenerator: vLLM ended with code {process.returncode} and left {len(missing)} of {len(parts)} parts. "
                f"Finished parts are kept: put right what follows, then resume the run.\n{log}"
            )
        if missing:
            time.sleep(POLL)
