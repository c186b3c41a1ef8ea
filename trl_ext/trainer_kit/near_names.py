"""The name that was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def near_name(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The most similar of some names; None where none is. `cutoff` is how similar, 1: equal.

    >>> near_name("bata", ["beta", "gamma"]), near_name("x", ["beta"])
    ('beta', None)
    """
    return next(iter(get_close_matches(name, sorted(known), n=1, cutoff=cutoff)), None)
