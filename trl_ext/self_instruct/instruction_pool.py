"""The pool of instructions, and how like one of it a new one is: ROUGE-L F1, by rapidfuzz.

    F1 = 2 · LCS / (m + n)

Insertions and deletions alone turn m words into n in m + n − 2 · LCS steps, so the normalised indel similarity of lists
of words is that F1. Words become letters of one alphabet, a letter each, which rapidfuzz compares 64 at a time.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import ceil

from rapidfuzz import process
from rapidfuzz.distance import Indel, LCSseq

from trl_ext.sequences.texts import Tokenize

ROUNDING = 1e-9
HALVES, HALF_COUNT = 0xD800, 0x800  # numbers of half characters, which are no letters
UNKNOWN = "\0"


def rouge_words(text: str) -> list[str]:
    """Runs of letters and digits in lower case: for English as rouge-score has them, and in every script.

    >>> rouge_words("Don't say \\"Où?\\" 3 times."), rouge_words("이름을 말해라.")
    (['don', 't', 'say', 'où', '3', 'times'], ['이름을', '말해라'])
    """
    return re.findall(r"[^\W_]+", text.lower())


def rouge_l_f1(words: Sequence[str], others: Sequence[str]) -> float:
    """Twice the length of the longest common subsequence over the sum of the lengths; 0 where both are empty.

    >>> rouge_l_f1("name a big bird".split(), "name a bird".split())  # 2 · 3 / (4 + 3)
    0.8571428571428571
    """
    total = len(words) + len(others)
    return 2 * LCSseq.similarity(words, others) / total if total else 0.0


class InstructionPool:
    """Instructions, and the nearest of them to another.

    Args:
        instructions: To begin with.
        words: From text to words.
    """

    def __init__(self, instructions: Iterable[str] = (), *, words: Tokenize = rouge_words):
        self._words = words
        self._letters: dict[str, str] = {}
        self._places: defaultdict[str, list[int]] = defaultdict(list)  # of the instructions with a letter
        self._spelled: list[str] = []
        for instruction in instructions:
            self.add(instruction)

    def __len__(self) -> int:
        return len(self._spelled)

    def add(self, instruction: str) -> None:
        words = self._words(instruction)
        for word in words:
            self._letters.setdefault(word, _letter(len(self._letters) + 1))
        spelled = "".join(self._letters[word] for word in words)
        for letter in set(spelled):
            self._places[letter].append(len(self._spelled))
        self._spelled.append(spelled)

    def nearest(self, instruction: str, *, above: float) -> tuple[int, float] | None:
        """Place and similarity of the most similar one, if that is above a bound, else None."""
        spelled = "".join(self._letters.get(word, UNKNOWN) for word in self._words(instruction))
        places = self._candidates(spelled, above)
        others = [self._spelled[place] for place in places]
        found = process.extractOne(
            spelled, others, scorer=Indel.normalized_similarity, score_cutoff=max(above - ROUNDING, 0.0)
        )
        similarity = rouge_l_f1(spelled, found[0]) if found else 0.0
        return (places[found[2]], similarity) if found and similarity > above else None

    def _candidates(self, spelled: str, above: float) -> list[int]:
        """Places of those that may be more similar than a bound, in order.

        Of m words such have more than c = m · above / (2 − above) in common, since they have no fewer themselves. So at least
        one of any m − c + 1 words; the rarest are looked up.
        """
        common = max(ceil(len(spelled) * above / (2 - above) - ROUNDING), 1)
        rarest = sorted(spelled, key=lambda letter: len(self._places.get(letter, ())))[: len(spelled) - common + 1]
        return sorted(set().union(*(self._places.get(letter, ()) for letter in set(rarest))))


def _letter(number: int) -> str:
    return chr(number if number < HALVES else number + HALF_COUNT)
