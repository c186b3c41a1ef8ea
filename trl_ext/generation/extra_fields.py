"""Fields of a request that one's own server knows, and OpenAI does not."""

import json
from collections.abc import Mapping
from typing import Any

OWN = (  # what requests say already
    "model",
    "messages",
    "prompt",
    "n",
    "seed",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "max_tokens",
    "logprobs",
    "top_logprobs",
    "stream",
)
EXAMPLE = '{"chat_template_kwargs": {"enable_thinking": false}}'


def checked_extra_body(given: Any, *, call: str) -> dict[str, Any]:
    """The fields, as JSON takes them; none for None.

    Raises:
        ValueError: For what is no such fields, or repeats what a request says already.
    """
    if given is None:
        return {}
    try:
        if not isinstance(given, Mapping) or not all(isinstance(name, str) and name for name in given):
            raise TypeError
        fields = json.loads(json.dumps(dict(given), allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise ValueError(
            f"{call}(extra_body={given!r}): expected fields of a request, as JSON takes them, e.g. {EXAMPLE}."
        ) from None
    repeated = next((name for name in OWN if name in fields), None)
    if repeated is not None:
        raise ValueError(
            f"{call}(extra_body={given!r}): a request says {repeated!r} already. Leave it out; sampling has arguments of its own."
        )
    return fields


def read_extra_body(text: str | None, *, flag: str) -> dict[str, Any] | None:
    """Of a flag, which is JSON; a ValueError that names it for what is not."""
    if text is None:
        return None
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{flag} {text}: expected JSON such as '{EXAMPLE}' ({error}). Mend it.") from None
    return checked_extra_body(fields, call=flag)


def shown_fields(fields: Mapping[str, Any]) -> str:
    """For a name: a blank and the fields; nothing where there are none.

    >>> shown_fields({"b": 1, "a": None}), shown_fields({})
    (' {"a": null, "b": 1}', '')
    """
    return f" {json.dumps(fields, sort_keys=True, ensure_ascii=False)}" if fields else ""
