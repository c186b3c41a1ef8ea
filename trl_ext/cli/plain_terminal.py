"""What a command writes where nobody looks on: no bars, and each line as it comes."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BARS = "TQDM_DISABLE"  # of the environment; tqdm reads it when it is imported, which a command has not done yet


@contextmanager
def plain_without_terminal() -> Iterator[None]:
    """Inside, a log file or a pipe gets lines instead of bars that are drawn over themselves; a terminal gets all."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty():
            stream.reconfigure(line_buffering=True)  # of both in the order in which they were written
    if sys.stderr.isatty() or BARS in os.environ:
        yield
        return
    os.environ[BARS] = "1"
    try:
        yield
    finally:
        del os.environ[BARS]
