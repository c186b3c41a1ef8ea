"""A block that ends when its time is over, wherever it is, so that what was measured until then is kept."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class TimeUp(BaseException):
    """The time is over. No `Exception`, or somebody on the way could take it for a failure of his own."""


@contextmanager
def at_most(seconds: float | None) -> Iterator[None]:
    """Raise `TimeUp` inside the block once its seconds are over; in the main thread, on Unix.

    Args:
        seconds: None: no limit.
    """

    def stop(*_):
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds or 0.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
