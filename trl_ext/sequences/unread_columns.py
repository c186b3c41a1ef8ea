"""Columns that look like a part of the question, and that nobody reads."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any

from datasets import Dataset, IterableDataset

WHOLE = ("question", "instruction", "input", "query", "text", "messages")  # may be all that is asked
ASKING = (*WHOLE, "system", "system_prompt", "history", "context")  # in any case
LOOKED_AT = 100  # first rows
OF_A_STREAM = 32  # of one, whose rows may be far away


def warn_of_unread(
    dataset: Dataset | IterableDataset, read: Sequence[str], *, call: str, others: Collection[str] = ()
) -> None:
    """Warn of columns that say, in one of the first rows, what is not in the ones that are read.

    Args:
        dataset: Of a stream, fewer rows are looked at.
        read: Columns that the model is shown.
        call: Who asks, and where the rows are from, for the message.
        others: Columns that somebody else reads, such as a reward.
    """
    for row, values in enumerate(islice(dataset, LOOKED_AT if isinstance(dataset, Dataset) else OF_A_STREAM)):
        shown = [text for name in read for text in _texts(values.get(name))]
        asking = [name for name in values if name.lower() in ASKING and name not in (*read, *others)]
        unread = [name for name in asking if _says_more(name.lower(), values[name], shown)]
        if unread:
            what = f"a column {unread[0]!r}" if len(unread) == 1 else f"the columns {unread}"
            warnings.warn(
                f"{call} has {what}, of which nothing is read, e.g. {str(values[unread[0]])[:80]!r} in row {row}: the "
                f"model sees {', '.join(read)} alone. If it is a part of what is asked, put it there.",
                stacklevel=4,
            )
            return


def _says_more(name: str, value: Any, shown: list[str]) -> bool:
    """Whether a column asks what is not shown; whole conversations and texts also hold what is to be said."""
    if name == "messages" and isinstance(value, list):
        value = [*takewhile(lambda message: not _is_answer(message), value)]
    if name == "text" and isinstance(value, str) and _goes_on(value, shown):
        return False
    return any(text.strip() not in "\n".join(shown) for text in _texts(value))


def _is_answer(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "assistant"


def _goes_on(text: str, shown: list[str]) -> bool:
    """Whether a text has in it what is shown, or begins there.

    >>> _goes_on("The film was dull.", ["Go on: The film was"])
    True
    """
    words, read = text.split(), [" ".join(part.split()) for part in shown]
    return any(part and (part in " ".join(words) or " ".join(words[:3]) in part) for part in read)


def _texts(value: Any) -> Iterator[str]:
    """All text in a value, however deep, without what only says the kind of a message or of its parts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([item for key, item in value.items() if key not in ("role", "type")])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
