"""Without the progress bars of steps that are part of another."""

from collections.abc import Iterator
from contextlib import contextmanager

import datasets


@contextmanager
def without_dataset_bars() -> Iterator[None]:
    """No progress bars of `datasets` inside the block; afterwards as before."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
