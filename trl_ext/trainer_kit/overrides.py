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
    """Collect what a method of `owner` returns inside the block, whoever calls it: its parent, too, hands it on so.

    >>> from fractions import Fraction
    >>> class Halves:
    ...     def half(self, number):
    ...         return Fraction(number, 2)
    ...
    ...     def total(self):
    ...         return sum(self.half(number) for number in (1, 3))
    >>> with outputs_of(halves := Halves(), "half") as seen:
    ...     print(halves.total(), seen)
    2 [Fraction(1, 2), Fraction(3, 2)]
    """
    outputs: list[Any] = []
    called = getattr(owner, method)

    @functools.wraps(called)
    def kept(*args, **kwargs):
        outputs.append(called(*args, **kwargs))
        return outputs[-1]

    with replaced(owner, **{method: kept}):
        yield outputs
