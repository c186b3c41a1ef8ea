"""A query's type as somebody gave it, and who may give it."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from trl_ext.sequences.query_type_column import TYPES


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


def is_label(query_type: Any, confidence: Any, reason: Any = "") -> bool:
    """Whether these make a label; NaN is no confidence.

    >>> is_label("open", 0.7), is_label(None, None), is_label("open", None), is_label("open", float("nan"))
    (True, True, False, False)
    """
    if query_type not in (*TYPES, None) or not isinstance(reason, str):
        return False
    if confidence is None:
        return query_type is None
    return isinstance(confidence, int | float) and 0.5 <= confidence <= 1


def label_of(p_open: float) -> Label:
    """The likelier type.

    >>> label_of(0.25)
    Label(query_type='closed', confidence=0.75, reason='')
    """
    return Label("open", p_open) if p_open >= 0.5 else Label("closed", 1 - p_open)
