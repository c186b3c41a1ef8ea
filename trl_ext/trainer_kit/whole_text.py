"""Text that every file takes: JSON may hold half of a character, `"\\ud83d"`, which UTF-8 has no bytes for."""

import re
from typing import Any

HALF = re.compile("[\ud800-\udfff]")
CUT = " … (cut)"


def whole_text(text: str) -> str:
    """Two halves that belong together as the character they are; another half as U+FFFD, which says that one was lost.

    >>> whole_text("\\ud83d\\ude00 \\ud83d") == "\\U0001f600 \\ufffd"
    True
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if HALF.search(text) else text


def with_whole_text(value: Any) -> Any:
    """The same in all that JSON holds."""
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, dict):
        return {whole_text(str(name)): with_whole_text(item) for name, item in value.items()}
    return [with_whole_text(item) for item in value] if isinstance(value, list) else value


def cut(text: str, length: int) -> str:
    """Its beginning, with a word where the rest is left out.

    >>> cut("a long story", 6), cut("short", 6)
    ('a long … (cut)', 'short')
    """
    return text if len(text) <= length else text[:length] + CUT


def short_name(name: str, length: int = 24) -> str:
    """A name of a model or a file, whose end tells it from others.

    >>> short_name("out/" + 20 * "x" + "/checkpoint-8")
    '…xxxxxxxxxx/checkpoint-8'
    """
    return name if len(name) <= length else f"…{name[1 - length :]}"
