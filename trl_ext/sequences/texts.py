"""What a reward reads: the text of a prompt or completion, standard or conversational, and its tokens."""

import functools
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence

import regex

from trl_ext.sequences.text_shapes import content_text

Text = str | list[dict]  # plain text, or messages
Tokenize = Callable[[str], list[str]]
ATTACHED = (
    r"[\p{M}\p{Join_Control}]"  # what belongs to the character before it: accents, vowel signs, viramas, joiners
)
WORDS = regex.compile(rf"(?!{ATTACHED})\w+|(?:[^\w\s]|{ATTACHED})+")


def text_of(completion: str | list[dict]) -> str:
    """The text that the model wrote: a string as it is, of messages what the assistant said, without role headers.

    >>> text_of([{"role": "assistant", "content": "Seoul."}])
    'Seoul.'
    """
    if isinstance(completion, str):
        return completion
    return "\n".join(content_text(message.get("content")) for message in completion if message["role"] == "assistant")


def last_user_text(prompt: str | list[dict]) -> str:
    """The raw text x of a prompt: a string as it is, of messages the last user turn, with neither template nor system.

    >>> last_user_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}])
    'Where?'
    """
    if isinstance(prompt, str):
        return prompt
    turns = [content_text(message.get("content")) for message in prompt if message["role"] == "user"]
    if not turns:
        roles = [message["role"] for message in prompt]
        raise ValueError(
            f"last_user_text: expected a prompt with a message of role 'user', got the roles {roles}. "
            "Drop such rows, or give the question as a user message."
        )
    return turns[-1]


def last_user_texts(prompts: Sequence[str | list[dict]], rows: Iterable[int]) -> list[str]:
    """Those of some rows; an error names the row."""
    texts = []
    for row in rows:
        try:
            texts.append(last_user_text(prompts[row]))
        except ValueError as error:
            raise ValueError(f"row {row}: {error}") from error
    return texts


def wordpunct(text: str) -> list[str]:
    r"""Runs of word characters and runs of punctuation, `\w+|[^\w\s]+`; case is kept.

    >>> wordpunct("Don't stop...")
    ['Don', "'", 't', 'stop', '...']
    """
    return re.findall(r"\w+|[^\w\s]+", text)


def unicode_wordpunct(text: str) -> list[str]:
    """The same with a word's accents, vowel signs and viramas left in it: for Hindi, Arabic with its vowels, and any text
    whose accents are characters of their own. The text is put into Unicode's composed form (NFC) first.

    >>> unicode_wordpunct("नमस्ते दुनिया!"), wordpunct("नमस्ते")
    (['नमस्ते', 'दुनिया', '!'], ['नमस', '्', 'त', 'े'])
    """
    return WORDS.findall(unicodedata.normalize("NFC", text))


def characters(text: str) -> list[str]:
    """Every character but white space: for Chinese or Japanese, whose sentences are one run of word characters.

    >>> characters("我 很好。")
    ['我', '很', '好', '。']
    """
    return [character for character in text if not character.isspace()]


def graphemes(text: str) -> list[str]:
    """Every character as a reader sees it, with its vowel signs and tone marks: for Thai, Lao, Khmer, Burmese, which write
    no space between words. NFC first.

    >>> graphemes("ที่ นี่")
    ['ที่', 'นี่']
    """
    return [each for each in regex.findall(r"\X", unicodedata.normalize("NFC", text)) if not each.isspace()]


def tokens_of(completion: str | list[dict], tokenize: Tokenize) -> list[str]:
    """The tokens of a completion's text, as `tokenize` cuts it."""
    text = text_of(completion)
    tokens = tokenize(text)
    if tokenize is wordpunct:
        _look_at_marks(text, tokens)
    if not isinstance(tokens, list):
        raise ValueError(
            f"tokenize={tokenize!r}: expected a list of tokens, got {type(tokens).__name__}. "
            "Pass a function from text to list, such as `tokenizer.tokenize` rather than `tokenizer`."
        )
    return tokens


def _look_at_marks(text: str, tokens: list[str]) -> None:
    """Warn once where `wordpunct`, cutting words at their marks, finds half as many tokens again as there are."""
    if text.isascii() or not regex.search(r"\p{M}", text):
        return
    if 2 * len(tokens) > 3 * len(unicode_wordpunct(text)):
        _warn_of_marks()


@functools.cache
def _warn_of_marks() -> None:
    warnings.warn(
        "LengthIncentive and RepetitionPenalty count pieces of these completions' words, since \\w+ of Python's re, which "
        "tokenize=wordpunct takes, ends at accents and vowel signs that are characters of their own. Give "
        "tokenize=trl_ext.unicode_wordpunct, or trl_ext.graphemes for a script without spaces, such as Thai.",
        stacklevel=6,
    )
