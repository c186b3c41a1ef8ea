"""What several processes do together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object

Found = TypeVar("Found")


def is_main_process() -> bool:
    """Whether this is the run's first process, or its only one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """A step that all processes take together: one's error is raised in all, instead of letting them wait for ever."""
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    messages = gather_object([None if error is None else f"{type(error).__name__}: {error}"])
    if error is not None:
        raise error
    failed = [(process, message) for process, message in enumerate(messages) if message is not None]
    if failed:
        process, message = failed[0]
        raise RuntimeError(f"process {process} of {accelerator.num_processes} failed: {message}")


def from_main(accelerator: Accelerator, ask: Callable[[], Found]) -> Found:
    """What the main process alone finds, in all of them; its error is raised in all."""
    with together(accelerator):
        found = ask() if accelerator.is_main_process else None
    return gather_object([found])[0]
