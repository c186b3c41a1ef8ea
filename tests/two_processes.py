"""A script in two processes on this machine (gloo), and how each of them leaves."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import torch.distributed


def run_in_two(script: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    """What came of it; torchrun fails if one of the two does."""
    root = Path(__file__).parent
    path = os.pathsep.join([str(root), str(root.parent), os.environ.get("PYTHONPATH", "")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*launch, str(script), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def leave() -> NoReturn:
    """End a process when both are done, without taking Python down.

    DDP holds the process group until then, and gloo's threads, which may ask for the interpreter while it ends, would now
    and then abort the process ("terminate called without an active exception").
    """
    torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
