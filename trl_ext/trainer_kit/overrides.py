"""What lets an override call its parent without copying it."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: object, **values: object) -> Iterator[None]:
    """Give attributes of `owner` other values inside the block, and theirs back after it, also on an error.

    >>> from types import SimpleNamespace
    >>> trainer = SimpleNamespace(beta=0.05)
    >>> with replaced(trainer, beta=0.0):
    ...     print(trainer.beta)
    0.0
    >>> trainer.beta
    0.05
    """
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def outputs_of(owner: object, method: str) -> Iterator[list[Any]]:
    """Collect what a method of `owner` returns inside the block, whoever calls it; the class's own is back after it.

    >>> class Halves:
    ...     def half(self, number):
    ...         return number / 2
    ...
    ...     def total(self):
    ...         return sum(self.half(number) for number in (1, 3))
    >>> with outputs_of(halves := Halves(), "half") as seen:
    ...     print(halves.total(), seen)
    2.0 [0.5, 1.5]
    >>> vars(halves)
    {}
    """
    outputs: list[Any] = []
    called, own = getattr(owner, method), vars(owner).get(method)

    @functools.wraps(called)
    def kept(*args, **kwargs):
        outputs.append(called(*args, **kwargs))
        return outputs[-1]

    setattr(owner, method, kept)
    try:
        yield outputs
    finally:
        if own is None:
            delattr(owner, method)
        else:
            setattr(owner, method, own)
