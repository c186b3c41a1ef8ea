"""A script in two processes on this machine (gloo), and how each of them leaves."""

import os
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

import torch.distributed
from forked import start
from torch.distributed import TCPStore

PATIENCE = 300  # seconds


def run_in_two(script: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    """What came of it; as with torchrun it fails if one of the two does, and the other is ended."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # at a port that nobody else can take
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    here |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}  # which is there already, as with torchrun
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, str(rank)) for rank in range(2)]
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        both = [
            start(script, *arguments, output=output, **here, **rank)
            for output, rank in zip(outputs, ranks, strict=True)
        ]
        code = _exit_code(both)
        said = ["".join(path.with_suffix(end).read_text() for path in outputs) for end in (".out", ".err")]
    return subprocess.CompletedProcess([str(script), *map(str, arguments)], code, *said)


def _exit_code(processes: list[BaseProcess]) -> int:
    """One that is not 0, if there is one; the other then gets a while to say what it has to."""
    running, until = list(processes), time.monotonic() + PATIENCE
    while running and (ended := wait([process.sentinel for process in running], max(0, until - time.monotonic()))):
        running = [process for process in running if process.sentinel not in ended]
        if any(process.exitcode for process in processes):
            until = min(until, time.monotonic() + 30)
    for process in running:
        process.kill()
        process.join()
    return next((process.exitcode for process in processes if process.exitcode), 0)


def leave() -> NoReturn:
    """End a process when both are done, without taking Python down.

    DDP holds the process group until then, and gloo's threads, which may ask for the interpreter while it ends, would now
    and then abort the process ("terminate called without an active exception").
    """
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
