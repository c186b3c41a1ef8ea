"""Training and vLLM on one card, by turns. Not run on a card: there is none here, and on a CPU vLLM does not sleep."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from torch import nn

from trl_ext.trainer_kit.offloading import off_the_card


class Sleeper(Protocol):
    """A process that leaves the card while it sleeps: its weights wait in the computer's memory, its cache is dropped."""

    def sleep(self) -> None: ...


Process = TypeVar("Process", bound=Sleeper)


@contextmanager
def vllms_turn(model: nn.Module, awake: Callable[[], Process]) -> Iterator[Process]:
    """vLLM's process, awake, while the training weights are off the card. Not run on a card.

        weights to the computer's memory, the allocator's cache emptied → vLLM started, or woken → … →
        vLLM asleep → weights back

    So that the two are never on the card together, nor at its start, when vLLM measures what is free. Optimizer states
    stay on it. Without a card, or where vLLM was not started to sleep, only the order is kept.

    Args:
        model: That is trained; must not be called meanwhile.
        awake: Starts vLLM, or wakes the process that sleeps.
    """
    with off_the_card(model):
        vllm = awake()
        try:
            yield vllm
        finally:
            vllm.sleep()
