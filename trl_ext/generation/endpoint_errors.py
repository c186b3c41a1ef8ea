"""What goes wrong at a server, by whose fault it is."""

from typing import Any

from trl_ext.sequences.text_shapes import content_text
from trl_ext.sequences.texts import Text

SHOWN = (40, 80)  # characters of its beginning and its end, of what was refused
REMEDY = (
    "Where it is too long for the server's model, shorten it or leave it out, or serve the model with a larger window."
)


class EndpointError(ConnectionError):
    """An endpoint that is down, refuses, or does not give what was asked for."""


class NoCompletion(EndpointError):
    """An endpoint that answers, but leaves one prompt without a completion."""


class RefusedRequest(EndpointError):
    """An endpoint that answers, and refuses what it was asked, e.g. as too long: the next try would be refused as well.

    Args:
        said: What the server said, in a sentence.
        what: What it refused, as who asked knows it: a row, a prompt.
        remedy: What to do.

    Attributes:
        item: What it refused, of several that were asked for.
    """

    item: Any = None

    def __init__(self, said: str, what: str | None = None, remedy: str = REMEDY):
        super().__init__(f"{said if what is None else f'{what} got no answer. {said}'} {remedy}")
        self.said = said

    def of(self, what: str, remedy: str = REMEDY) -> "RefusedRequest":
        """The same refusal, named as who asked knows it."""
        return RefusedRequest(self.said, what, remedy)


def shown_prompt(prompt: Text) -> str:
    """How long it is, how it begins and how it ends; of messages, the last one.

    >>> shown_prompt("Why?")
    "of 4 characters, 'Why?',"
    """
    text = prompt if isinstance(prompt, str) else content_text(prompt[-1].get("content"))
    first, last = SHOWN
    shown = text if len(text) <= first + last else f"{text[:first]} … {text[-last:]}"
    return f"of {len(text):,} characters, {shown!r},"
