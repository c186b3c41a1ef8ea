"""Several requests at a time to one server, each answer handed on as it comes."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from typing import TypeVar

from trl_ext.generation.endpoint_errors import RefusedRequest

Item, Answer = TypeVar("Item"), TypeVar("Answer")


def as_they_come(
    ask: Callable[[Item], Answer], items: Sequence[Item], *, concurrency: int
) -> Iterator[tuple[int, Answer]]:
    """The number of each item and what `ask` makes of it, in the order of the answers; asked in threads.

    What is being asked when the first one fails, or at Ctrl-C, is waited for and given; then the error is raised.
    """
    threads = ThreadPoolExecutor(concurrency)
    asked = {threads.submit(partial(_named, ask), item): i for i, item in enumerate(items)}
    try:
        for future in as_completed(list(asked)):
            yield asked[future], future.result()
            del asked[future]
    except GeneratorExit:
        raise
    except BaseException:
        threads.shutdown(cancel_futures=True)
        yield from ((i, other.result()) for other, i in asked.items() if _has_answer(other))
        raise
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _named(ask: Callable[[Item], Answer], item: Item) -> Answer:
    """What it is asked; a refusal says of which item."""
    try:
        return ask(item)
    except RefusedRequest as error:
        error.item = item
        raise


def _has_answer(future: Future) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
