"""How a command ends: what its user can mend, or has stopped, in one line on stderr; a fault of its own with a traceback."""

import atexit
import errno
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from safetensors import SafetensorError

from trl_ext.trainer_kit.failed_process import is_of_another, wait_for_it
from trl_ext.trainer_kit.quiet import repeats_left_out

PACKAGE = Path(__file__).parents[1]
TRACEBACK = "TRL_EXT_TRACEBACK"  # of the environment: also shows where bad input was found
DEBUG = "--debug"  # the same, of a command
BAD_INPUT, STOPPED, READER_GONE = 2, 130, 1  # exit codes
MENDABLE = (ValueError, OSError, ImportError)  # anything else is a fault of the code
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how Rust, and so safetensors, tells of a full disk
REMEDIES = {
    errno.ENOSPC: "Make room on that disk, then give the same command again.",
    errno.EDQUOT: "Make room within the quota, then give the same command again.",
    errno.EROFS: "Give a place that can be written.",
    errno.EACCES: "Give another place, or ask for the permission.",
    errno.EPERM: "Give another place, or ask for the permission.",
}


@contextmanager
def ends_in_one_line(
    call: str,
    *,
    when_stopped: str,
    folder: Path = PACKAGE,
    debug: bool | None = None,
    say: Callable[[str], str] = str,
) -> Iterator[None]:
    """Let what is run inside end as a command does.

    bad input    code 2 and one line: what was expected, what came, what to do
    Ctrl-C       code 130 and one line; SIGTERM likewise
    `| head`     nothing more is said to a reader that has gone
    a fault      its traceback, as ever: any error but a ValueError, an OSError and an ImportError
    --debug      or TRL_EXT_TRACEBACK=1 in the environment: also the traceback of what is told in one line
    a warning    of the package's own, one line, without the place and the line of source that Python shows

    Args:
        call: The command, for the line.
        when_stopped: How its user goes on after Ctrl-C.
        folder: Of a program outside this package, whose messages then are as much its own words as the package's.
        debug: Whether tracebacks are asked for; None: a program without that flag.
        say: Makes of words for whoever calls from Python the command's own.
    """
    try:
        with repeats_left_out(), terminated_as_interrupted(), warnings_in_one_line(call, folder, say):
            yield
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        _end(f"{call}: stopped{say(f' {error}') if str(error) else ''}. {when_stopped}", error, STOPPED, debug)
    except RuntimeError as error:
        if not is_of_another(error):
            raise
        wait_for_it(error)
        _end(f"{call}: error: {error}", error, BAD_INPUT, debug)
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own end would complain of it
        raise SystemExit(READER_GONE) from error
    except (*MENDABLE, SafetensorError) as error:
        if isinstance(error, SafetensorError) and not OS_ERROR.search(str(error)):
            raise
        asked_by = f"{TRACEBACK}=1" if debug is None else DEBUG
        _end(f"{call}: error: {say(told(error, folder, asked_by))}", error, BAD_INPUT, debug)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Inside, SIGTERM ends what is run as Ctrl-C does; a handler of somebody else's stays."""
    is_ours = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def whole_process() -> Iterator[None]:
    """Around all that a process does: a signal that comes while it ends changes neither its code nor what it has said.

    What is left then, as threads of others, ends at once.
    """
    atexit.register(_answered, signal.SIG_IGN)  # of what Python itself still does; what is imported later ends before
    code = 0
    try:
        yield
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    except BaseException:
        code = None  # its traceback is still to be shown
        raise
    finally:
        if code is not None:
            with suppress(OSError, ValueError):  # of which Python tells at its end
                sys.stdout.flush()
            _answered(lambda *_: os._exit(code))


def _answered(handler: Callable | signal.Handlers) -> None:
    """From here on, by a handler, where nobody else listens; nohup's and a background job's stay ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, handler)


@contextmanager
def warnings_in_one_line(call: str, folder: Path = PACKAGE, say: Callable[[str], str] = str) -> Iterator[None]:
    """Inside, what the package or the program in `folder` warns of is shown in one line; of others, as ever.

    It is theirs by where it is said from, whichever line it is said of. Who records warnings gets them as they are.
    """
    former = warnings.formatwarning

    def formatted(message, category, filename, lineno, line=None):
        if _is_own(_said_from(sys._getframe(1)), folder):
            return f"{call}: warning: {say(' '.join(str(message).split()))}\n"
        return former(message, category, filename, lineno, line)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = former


def _said_from(frame: FrameType | None) -> str:
    """The file of the first frame outside Python's own `warnings`."""
    while frame is not None and frame.f_globals.get("__name__") in (
        "warnings",
        "_py_warnings",
    ):  # its name from 3.14 on
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_filename


def _is_own(file: str, folder: Path) -> bool:
    return any(Path(file).is_relative_to(own) for own in (PACKAGE, folder))


def told(error: Exception, folder: Path, asked_by: str) -> str:
    """An error in words: as the command raised it, as the system names it, else in one line with its place."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"({type(error).__name__} in {frame.filename}, line {frame.lineno}); {asked_by} shows the way there"
    number = _system_error(error)
    if number is not None:
        file = error.filename if isinstance(error, OSError) else None
        where, rest = ("", f" {place}") if file is None else (f"{file}: ", "")
        return f"{where}{os.strerror(number)}. {REMEDIES[number]}{rest}"
    if _is_own(frame.filename, folder) and (frame.line or "").startswith("raise "):
        return (isinstance(error, OSError) and error.strerror) or str(error)  # without "[Errno 28]"
    return f"{' '.join(str(error).split()) or 'no reason is given'} {place}"


def _system_error(error: Exception) -> int | None:
    """The system's number of what it refused, where that has a remedy and nobody has named one yet."""
    found = OS_ERROR.search(str(error))
    number = int(found[1]) if found else error.errno if isinstance(error, OSError) else None
    is_bare = not isinstance(error, OSError) or number is None or error.strerror == os.strerror(number)
    return number if number in REMEDIES and is_bare else None


def _end(line: str, error: BaseException, code: int, debug: bool | None) -> NoReturn:
    if _speaks():
        if debug or os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        print(_wrapped(line), file=sys.stderr)
    raise SystemExit(code) from error


def _wrapped(line: str) -> str:
    """Between words, on a terminal; a log gets one line, which can be searched."""
    if not sys.stderr.isatty():
        return line
    return "\n".join(textwrap.wrap(line, shutil.get_terminal_size().columns, break_long_words=False))


def _speaks() -> bool:
    """Whether this process says how it ended: of several the first of each machine, as all of one find the same."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
