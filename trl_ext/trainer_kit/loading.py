"""Loading models without noise."""

from collections.abc import Iterator
from contextlib import contextmanager

import transformers


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' report of weights that a checkpoint has too few or too many, where that is dealt with."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
