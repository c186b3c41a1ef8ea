"""What a server answered, judged by its shape, and its address, without the keys that are in it."""

import json
import logging
import re
from base64 import b64encode
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from trl_ext.trainer_kit.whole_text import cut, whole_text

EXCERPT, BEGINNING = 200, 80  # characters that a message quotes, of an answer that is JSON and of another
SAID = ("stop", "length")  # how a completion ends
FAILED = ("error", "abort", "content_filter")  # how none does: what text there is has no end of its own
SHORTEST_SECRET = 4  # characters; less is found everywhere
LOGGERS = ("httpx", "httpx2", "openai._base_client")  # which write down the address of each request


class NoText(Exception):
    """An answer without a single completion; `came`: what it was."""

    def __init__(self, came: Any):
        super().__init__()
        self.came = came


class Silent(NoText):
    """An answer whose completions are empty, not failed: a model that is cut while it thinks, a filter."""


def texts_and_ends(answer: str) -> tuple[list[tuple[str, bool]], list[Any]]:
    """The completions in a server's answer, each with whether it ended, and the choices that are none.

    Raises:
        json.JSONDecodeError: For what is no JSON.
        NoText: Where no choice has text, with what came instead, such as the server's message.
    """
    content = json.loads(answer)
    choices = content.get("choices") if isinstance(content, dict) else None
    found = [(choice, text_and_end(choice)) for choice in choices] if isinstance(choices, list) else []
    texts = [text for _, text in found if text is not None]
    if not texts:
        raise (Silent if found and not any(map(_broke, choices)) else NoText)(content)
    return texts, [choice for choice, text in found if text is None]


def unsaid_ends(answer: str) -> list[Any]:
    """The completions in a server's answer that say neither that they came to their end nor that they were cut."""
    choices = json.loads(answer)["choices"]
    return [choice for choice in choices if text_and_end(choice) and choice.get("finish_reason") not in SAID]


def text_and_end(choice: Any) -> tuple[str, bool] | None:
    """Of a choice of either kind; None where it has no text, also an empty one that did not come to its own end, and where
    the server failed at it, or took some of it away.

    >>> text_and_end({"text": " Seoul.", "finish_reason": "stop"})
    (' Seoul.', True)
    >>> text_and_end({"message": {"content": None, "refusal": "I cannot."}, "finish_reason": "stop"})
    """
    if not isinstance(choice, dict):
        return None
    message = choice.get("message")
    text = _joined(message.get("content") if isinstance(message, dict) else choice.get("text"))
    ended = choice.get("finish_reason") == "stop"
    if choice.get("finish_reason") in FAILED:
        return None
    return (text, ended) if text or (text is not None and ended) else None


def tokens_of(answer: str) -> int:
    """That the server says an answer has cost; 0 where it does not, or cannot be read."""
    try:
        count = json.loads(answer)["usage"]["total_tokens"]
    except (ValueError, TypeError, LookupError):
        return 0
    return count if isinstance(count, int) else 0


def _broke(choice: Any) -> bool:
    return not isinstance(choice, dict) or choice.get("finish_reason") in ("error", "abort")


def _joined(content: Any) -> str | None:
    """Text as it is, parts of a message's content joined; half of a character, which no file takes, as U+FFFD."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(parts) if parts and all(isinstance(part, str) for part in parts) else None
    if not isinstance(content, str):
        return None
    return whole_text(content)


def public_url(url: str) -> str:
    """A server's address without user, password, query and fragment, where keys may be.

    >>> public_url("http://user:password@host:1/v1?key=secret")
    'http://host:1/v1'
    """
    scheme, separator, place = url.partition("#")[0].partition("?")[0].rpartition("://")
    host, slash, path = place.partition("/")
    return scheme + separator + host.rpartition("@")[2] + slash + path


def address_and_query(url: str, *, call: str) -> tuple[str, dict[str, str]]:
    """A server's address without its query, and the query, which each request repeats behind its own path.

    Raises:
        ValueError: For what is no address; it does not repeat what may be a key.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:  # e.g. a port that is no number
        good = False
    if not good:
        raise ValueError(
            f"{call}(base_url={public_url(url)!r}): expected an address such as 'http://localhost:8000/v1'."
        )
    return parts._replace(query="", fragment="").geturl(), dict(parse_qsl(parts.query, keep_blank_values=True))


def check_key(api_key: str, *, call: str) -> None:
    """Raise a ValueError, which does not repeat it, for a key that no request can carry: its error would show all of it."""
    if not isinstance(api_key, str) or not re.fullmatch(r"[!-~]+", api_key):
        raise ValueError(
            f"{call}: expected a key of visible ASCII characters alone, and this one has others, such as a blank, the end of a line "
            "or a “. Give it, or OPENAI_API_KEY in the environment, without them."
        )


class Secrets(logging.Filter):
    """Keys that no message may repeat. As a filter, it takes them out of what a logger writes."""

    def __init__(self, url: str, api_key: str | None):
        super().__init__()
        parts = urlsplit(url)
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"  # which clients send as base64
        values = [api_key, parts.password or parts.username, *(value for _, value in parse_qsl(parts.query))]
        values += [b64encode(user.encode()).decode()] if parts.username else []
        values = [value for value in values if value is not None and len(value) >= SHORTEST_SECRET]
        self.forms = sorted({form for value in values for form in _forms(value)}, key=len, reverse=True)
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self)

    def hidden(self, text: str) -> str:
        for form in self.forms:
            text = text.replace(form, "…")
        return text

    def excerpt(self, content: Any) -> str:
        """What came, as JSON, in the length of a message; keys go before it is cut, so that no half of one stays."""
        return cut(self.hidden(json.dumps(content, ensure_ascii=False)), EXCERPT)

    def beginning(self, answer: str) -> str:
        """Of what is no JSON."""
        return self.hidden(answer)[:BEGINNING]

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.hidden(record.getMessage()), None
        return True


def _forms(value: str) -> tuple[str, ...]:
    """How a key may come back: as it is, in an address, and in JSON, which may set a backslash before a slash."""
    escaped = json.dumps(value)[1:-1]
    return value, unquote(value), quote(value, safe=""), quote_plus(value), escaped, escaped.replace("/", "\\/")
