"""What the classifier sees of a query: its words and pairs of neighbours, hashed into one table, and the scripts it is in."""

import re
import unicodedata
import zlib
from collections import Counter
from itertools import pairwise
from math import log

BUCKETS = 2**16
READ = 1000  # characters of a query; what is asked stands at its beginning
WORD = re.compile(r"\w+|[^\w\s]")


def words(query: str) -> list[str]:
    """Words and marks, in lower case.

    >>> words("Is it?")
    ['is', 'it', '?']
    """
    return WORD.findall(query[:READ].lower())


def letter_words(query: str) -> list[str]:
    """The words of letters alone, of any script and with any accents.

    >>> letter_words("Où est-il, 3 fois ?")
    ['où', 'est', 'il', 'fois']
    """
    return [word for word in words(query) if word.isalpha()]


def word_number(word: str) -> int:
    """Stands for a word where it must not be taken for another; the same in every process."""
    return zlib.crc32(word.encode("utf-8", "replace"))


def bucket(feature: str) -> int:
    """The place of a word, or of two, in the table; the same in every process."""
    return word_number(feature) % BUCKETS


def counts(query: str) -> dict[int, float]:
    """1 + log n for each bucket that is hit n times."""
    found = words(query)
    pairs = (f"{one} {other}" for one, other in pairwise(found))
    return {place: 1 + log(n) for place, n in Counter(map(bucket, [*found, *pairs])).items()}


def scripts(query: str) -> Counter[str]:
    """How many letters a query has of each script, by Unicode's names of them.

    >>> scripts("Où est 서울?")
    Counter({'LATIN': 5, 'HANGUL': 2})
    """
    letters = (character for character in query[:READ] if character.isalpha())
    return Counter(unicodedata.name(letter, "UNKNOWN").split()[0] for letter in letters)
