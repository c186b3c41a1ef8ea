"""Columns that look like a part of the question, and that nobody reads."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset

ASKING = ("question", "instruction", "input", "query", "system", "history")
LOOKED_AT = 100  # first rows


def warn_of_unread(
    dataset: Dataset | IterableDataset, read: Sequence[str], *, call: str, others: Collection[str] = ()
) -> None:
    """Warn of columns that say, in one of the first rows, what is not in the ones that are read.

    Args:
        dataset: Of a stream, the first row is looked at.
        read: Columns that the model is shown.
        call: Who asks, and where the rows are from, for the message.
        others: Columns that somebody else reads, such as a reward.
    """
    for row, values in enumerate(islice(dataset, LOOKED_AT if isinstance(dataset, Dataset) else 1)):
        shown = "\n".join(text for name in read for text in _texts(values.get(name)))
        unread = [name for name in ASKING if name not in (*read, *others) and _says_more(values.get(name), shown)]
        if unread:
            what = f"a column {unread[0]!r}" if len(unread) == 1 else f"the columns {unread}"
            warnings.warn(
                f"{call} has {what}, of which nothing is read, e.g. {str(values[unread[0]])[:80]!r} in row {row}: the "
                f"model sees {', '.join(read)} alone. If it is a part of what is asked, put it there.",
                stacklevel=4,
            )
            return


def _says_more(value: Any, shown: str) -> bool:
    return any(text.strip() not in shown for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    """All text in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)
