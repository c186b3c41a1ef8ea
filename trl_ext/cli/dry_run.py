"""The first row of a data set, in the terminal, as a trainer will read it."""

import unicodedata
from typing import NamedTuple

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

LONGEST = 600  # characters that are shown of a text: its beginning and its end
CONTROL = ("Cc", "Cs")  # categories of Unicode: controls, and halves of characters, which cannot be printed


class Line(NamedTuple):
    """What is shown of a row: a name, a text, and what is to be said of it."""

    name: str
    text: str
    note: str = ""


def read_as(name: str, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Line:
    """Tokens as text, marks included, between ⟦ and ⟧."""
    count = "1 token" if len(ids) == 1 else f"{len(ids)} tokens"
    return Line(name, f"⟦{shortened(tokenizer.decode(ids))}⟧", count)


def ends(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokens that end a completion, with their ids."""
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in ids)


def shortened(text: str) -> str:
    """Its beginning and its end.

    >>> len(shortened("x" * 10_000))
    603
    """
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} … {text[-half:]}"


def visible(text: str) -> str:
    """With control characters as Python writes them, which a terminal would obey; ends of lines and tabs stay.

    >>> visible("a\\x1b[2Jb\\r")
    'a\\\\x1b[2Jb\\\\r'
    """
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in CONTROL else ascii(c)[1:-1] for c in text)


def show(title: str, lines: list[Line]) -> None:
    """Write them out, names on the left. What is read from a file is neither markup nor orders to the terminal."""
    console = Console(highlight=False)
    console.print(f"\n{visible(title)}:", markup=False)
    width = max(len(line.name) for line in lines)
    for line in lines:
        note = f"  ({line.note})" if line.note else ""
        console.print(Text(visible(f"  {line.name:{width}}  {line.text}{note}")), soft_wrap=True)
