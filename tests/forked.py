"""Programs as processes that need not import anything: forked from one that has imported, once, what they share.

A fresh process spends six seconds on torch, transformers and TRL, and most programs of the tests less on what they are
for. What only a fresh process shows is tested by those that start one: `torchrun` and `accelerate launch` in
test_cli_in_two.py, and the commands in test_commands.py.
"""

import faulthandler
import multiprocessing
import os
import runpy
import sys
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest.mock import patch

PATIENCE = 270  # seconds; behind them a program prints the stacks of its threads, and ends
TESTS = Path(__file__).parent
PATHS = [str(TESTS), str(TESTS.parent)]


def start(program: str | Path, *arguments: str | Path, output: Path, **environment: str) -> ForkServerProcess:
    """A Python file that runs as `__main__`, with what it says in `output`.out and `output`.err."""
    variables = os.environ | environment
    process = _context().Process(target=_run, args=(str(program), [*map(str, arguments)], variables, str(output)))
    process.start()
    return process


@cache
def _context() -> ForkServerContext:
    """With its server running; that has one thread, as libraries count them where they are loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forked_imports"])
    path = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])
    with patch.dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS="1"):
        forkserver.ensure_running()
    return context


def _run(program: str, arguments: list[str], variables: dict[str, str], output: str) -> None:
    for stream, end in ((sys.stdout, "out"), (sys.stderr, "err")):
        file = os.open(f"{output}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream.fileno())
    os.environ.update(variables)
    sys.argv = [program, *arguments]
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    runpy.run_path(program, run_name="__main__")
