"""What several processes do together."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object

from trl_ext.trainer_kit.failed_process import end_behind_it, is_of_another
from trl_ext.trainer_kit.overrides import replaced

Found = TypeVar("Found")
OF_THE_NETWORK = re.compile(r"gloo|NCCL|ProcessGroup", re.IGNORECASE)


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
    try:
        messages = gather_object([None if error is None else f"{type(error).__name__}: {error}"])
    except Exception:
        if error is not None:  # the others are gone: one's own error says more than that
            raise error from None
        raise
    if error is not None:
        raise error
    failed = [(process, message) for process, message in enumerate(messages) if message is not None]
    if failed:
        process, message = failed[0]
        end_behind_it()
        raise RuntimeError(f"process {process} of {accelerator.num_processes} failed: {message}")


@contextmanager
def alone(accelerator: Accelerator) -> Iterator[None]:
    """Inside, a process gathers and sums what it has itself, without the others."""
    itself = dict.fromkeys(("gather", "gather_for_metrics", "reduce"), lambda tensor, *args, **kwargs: tensor)
    with replaced(accelerator, **itself):
        yield


def from_main(accelerator: Accelerator, ask: Callable[[], Found], *, asks: bool | None = None) -> Found:
    """What the main process finds, in all of them; its error is raised in all.

    Args:
        accelerator: Whose processes.
        ask: Finds it.
        asks: Whether this process looks too, on its own machine; None: the main one alone.
    """
    with together(accelerator):
        found = ask() if (accelerator.is_main_process if asks is None else asks) else None
    return gather_object([found])[0]


def has_lost_another(error: BaseException) -> bool:
    """Whether an error says that another process has ended, or does not answer."""
    if not (dist.is_available() and isinstance(error, RuntimeError)) or is_of_another(error):
        return False
    return isinstance(error, dist.DistError) or bool(OF_THE_NETWORK.search(str(error)))
