"""The end of processes for which another one has failed: behind that one's, so that a launcher shows its words first."""

import re
import sys
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType

OF_ANOTHER = re.compile(r"process \d+ of \d+ failed: ")  # as `processes.together` raises it in all others
HEAD_START = 5.0  # seconds in which the process that failed says why, and ends, before the others do


def is_of_another(error: BaseException) -> bool:
    """Whether an error only says that another process has failed."""
    return isinstance(error, RuntimeError) and OF_ANOTHER.match(str(error)) is not None


def end_behind_it() -> None:
    """Let an interpreter that ends by such an error wait before it shows it: torchrun then ends it before it has to."""
    if getattr(sys.excepthook, "func", None) is not _show_behind:
        sys.excepthook = partial(_show_behind, sys.excepthook)


def wait_for_it(error: BaseException) -> None:
    """Before such an error is shown in other ways."""
    if is_of_another(error):
        time.sleep(HEAD_START)


def _show_behind(show: Callable, kind: type, error: BaseException, trace: TracebackType | None) -> None:
    wait_for_it(error)
    show(kind, error, trace)
