"""What lets an override call its parent without copying it."""

from collections.abc import Iterator
from contextlib import contextmanager


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
