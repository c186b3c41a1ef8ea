"""Rewards of several processes, one of which may fail while the others wait for its scores."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accelerate import Accelerator

from trl_ext.trainer_kit.processes import together


@contextmanager
def errors_held(functions: list[Callable], accelerator: Accelerator) -> Iterator[list[Callable]]:
    """Inside, reward functions whose errors wait until all processes have scored; one's is then raised in all of them.

    Args:
        functions: Rewards in TRL's protocol. Of one process they come back as they are.
        accelerator: Whose processes score their own rows, and gather the scores inside.
    """
    if accelerator.num_processes == 1:
        yield functions
        return
    errors: list[Exception] = []
    yield [_held(function, errors) for function in functions]
    with together(accelerator):
        if errors:
            raise errors[0]


def _held(function: Callable, errors: list[Exception]) -> Callable:
    """A function that keeps its error, and then scores 0."""

    def failed(error: Exception, completions: list) -> list[float]:
        errors.append(error)
        return [0.0] * len(completions)

    if inspect.iscoroutinefunction(function):

        async def scored(**columns):
            try:
                return await function(**columns)
            except Exception as error:
                return failed(error, columns["completions"])

    else:

        def scored(**columns):
            try:
                return function(**columns)
            except Exception as error:
                return failed(error, columns["completions"])

    return functools.wraps(function)(scored)
