"""A query's type as somebody gave it, and who may give it."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Label(NamedTuple):
    """What a labeler makes of a query.

    Args:
        query_type: 'open' or 'closed'; None where it does not know.
        confidence: Its probability that this is right, in [0.5, 1]; None where it made nothing of the query.
        reason: Why there is no type: the end of the sentence "got no type: 3 are …".
    """

    query_type: str | None
    confidence: float | None
    reason: str = ""


class Labeler(Protocol):
    """Who gives queries their types.

    name: With all that its labels depend on: what was kept of another name is not taken for its own.
    threshold: Confidence below which it abstains, unless the caller says another.
    needs_file: Whether its labels are too dear to be lost with an error.
    """

    @property
    def name(self) -> str: ...

    @property
    def threshold(self) -> float: ...

    @property
    def needs_file(self) -> bool: ...

    def label(self, queries: list[str]) -> Iterator[tuple[int, Label]]:
        """Of each query its number and its label, as they come, in any order."""
        ...


def label_of(p_open: float) -> Label:
    """The likelier type.

    >>> label_of(0.25)
    Label(query_type='closed', confidence=0.75, reason='')
    """
    return Label("open", p_open) if p_open >= 0.5 else Label("closed", 1 - p_open)
