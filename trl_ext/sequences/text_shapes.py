"""Whether a value is what a prompt or a completion is, text or messages: by its shape, whatever its column is called."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trl_ext.trainer_kit.whole_text import cut

EXPECTED = 'text or messages, [{"role": "user", "content": "…"}]'
SHAREGPT = {"human": "user", "gpt": "assistant"}  # its `from` as a role; others are called alike
SAYS = ("tool_calls", "function_call", "reasoning_content", "thinking")  # what a message may have instead of content
DROP = "Drop such rows with `dataset.filter`."


class Fault(NamedTuple):
    """What a value is instead, and what to do; COLUMN in it stands for the column's name in quotes."""

    what: str
    remedy: str

    def remedy_for(self, column: str) -> str:
        return self.remedy.replace("COLUMN", repr(column))


TO_MESSAGES = f"[{{'role': {SHAREGPT}.get(m['from'], m['from']), 'content': m['value']}} for m in MESSAGES]"


def shown(value: Any, length: int = 120) -> str:
    """A value as Python writes it, cut where it is long."""
    return cut(repr(value), length)


def map_line(expression: str) -> str:
    """One line of Python that makes of a column what `expression` makes of a row."""
    return f"dataset = dataset.map(lambda row: {{COLUMN: {expression}}})"


def fault_of(value: Any, *, may_be_empty: bool = False) -> Fault | None:
    """What keeps a value from being text or messages; None where nothing does.

    >>> fault_of("Why?"), fault_of([{"role": "user", "content": "Why?"}])
    (None, None)
    >>> fault_of([{"role": "user"}]).what
    'and its message 0 has no content'

    Args:
        value: Of a row.
        may_be_empty: Whether text, or the last message, may say nothing.
    """
    if isinstance(value, str):
        return _of_text(value, may_be_empty)
    if isinstance(value, list | tuple):
        return _of_list(value, may_be_empty)
    if value is None:
        return Fault("and there is none", DROP)
    if is_sharegpt(value):
        return _of_sharegpt("this is one message", "[row[COLUMN]]")
    if isinstance(value, Mapping):
        return Fault("and this is one message, not a list of them", f"Make it one: {map_line('[row[COLUMN]]')}")
    return Fault(f"and this is of type {type(value).__name__}", "Name the column that has the text.")


def is_sharegpt(message: Any) -> bool:
    """Whether a message says `from` and `value` where others say `role` and `content`."""
    return isinstance(message, Mapping) and message.get("role") is None and message.get("from") is not None


def from_sharegpt(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of ShareGPT's as others write it.

    >>> from_sharegpt({"from": "gpt", "value": "Seoul."})
    {'role': 'assistant', 'content': 'Seoul.'}
    """
    return {"role": SHAREGPT.get(message["from"], message["from"]), "content": message.get("value")}


def is_parts(content: Any) -> bool:
    """Whether a message's content is parts of text: [{"type": "text", "text": "…"}]."""
    return isinstance(content, list) and all(map(_is_text_part, content))


def content_text(content: str | list[dict] | None) -> str:
    """What a message says: its text, or the texts of its parts in a row; '' where it only calls tools."""
    return "".join(part.get("text") or "" for part in content) if isinstance(content, list) else content or ""


def with_text(value: Any) -> Any:
    """Messages with text in place of parts of text, of which many chat templates write nothing; all else as it is.

    >>> with_text([{"role": "user", "content": [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}]}])
    [{'role': 'user', 'content': 'Why?'}]
    """
    if not isinstance(value, list) or not any(map(_has_parts, value)):
        return value
    return [{**item, "content": content_text(item["content"])} if _has_parts(item) else item for item in value]


def _has_parts(item: Any) -> bool:
    return isinstance(item, Mapping) and is_parts(item.get("content"))


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def _of_text(value: str, may_be_empty: bool) -> Fault | None:
    if value.startswith("[{") and _holds_messages(value):
        return Fault("and this is messages, written as text", f"Read it: {map_line('json.loads(row[COLUMN])')}")
    if may_be_empty or value.strip():
        return None
    return Fault(f"and there is nothing in it{' but white space' if value else ''}", DROP)


def _holds_messages(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return all(isinstance(item, Mapping) and ({"role", "content"} <= set(item) or is_sharegpt(item)) for item in value)


def _of_list(value: Sequence, may_be_empty: bool) -> Fault | None:
    if not value:
        return None if may_be_empty else Fault("and there is nothing in it", DROP)
    if not all(isinstance(message, Mapping) for message in value):
        return _of_items(value)
    if any(map(is_sharegpt, value)):
        return _of_sharegpt("these are messages", "row[COLUMN]")
    fault = next(filter(None, map(_of_message, value, range(len(value)))), None)
    if fault is None and not (may_be_empty or _says_something(value[-1])):
        return Fault("and its last message says nothing", DROP)
    return fault


def _of_sharegpt(what: str, messages: str) -> Fault:
    return Fault(f"and {what} of ShareGPT's", f"Convert it: {map_line(TO_MESSAGES.replace('MESSAGES', messages))}")


def _of_items(value: Sequence) -> Fault:
    if all(isinstance(item, str) for item in value):
        joined = map_line("'\\n'.join(row[COLUMN])")
        return Fault("and this is a list of text", f"Make each a message with its role, or join them: {joined}")
    other = next(item for item in value if not isinstance(item, Mapping))
    return Fault(f"and among its messages is {repr(other)[:40]}", "Leave out what is no message.")


def _of_message(message: Mapping, at: int) -> Fault | None:
    if not isinstance(message.get("role"), str):
        return Fault(f"and its message {at} has no role", "Say who speaks: 'system', 'user' or 'assistant'.")
    content = message.get("content")
    if isinstance(content, str) or is_parts(content):
        return None
    if content is None:
        calls = any(message.get(name) for name in SAYS)
        return None if calls else Fault(f"and its message {at} has no content", "Give it, or drop such rows.")
    if isinstance(content, list):
        return Fault(f"and its message {at} has a part that is not text", "Images and the like are not supported.")
    return Fault(f"and the content of its message {at} is of type {type(content).__name__}", "Give text.")


def _says_something(message: Mapping) -> bool:
    return bool(content_text(message.get("content")).strip()) or any(message.get(name) for name in SAYS)
