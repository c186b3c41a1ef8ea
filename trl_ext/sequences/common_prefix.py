"""What sequences begin with together."""

from collections.abc import Sequence

LEAST_SAVED = 256  # tokens that reading a common beginning once must save, or a batch of whole sequences is faster


def common_length(sequences: Sequence[list]) -> int:
    """How many items, tokens or messages, all begin with.

    >>> common_length([[1, 2, 3], [1, 2], [1, 2, 4]])
    2
    """
    places = enumerate(zip(*sequences, strict=False))
    return next((i for i, items in places if items.count(items[0]) < len(items)), min(map(len, sequences)))
