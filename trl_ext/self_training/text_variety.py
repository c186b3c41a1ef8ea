"""How varied many texts are, counted as they come: in memory stay the distinct words, and 4 n bytes of each distinct n-gram."""

from collections.abc import Iterable
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from trl_ext.sequences.texts import wordpunct

AT_ONCE = 4096  # texts
Ids = NDArray[np.int32]


class TextVariety:
    """Counts n-grams and segments of texts that may be more than fit into memory.

    Args:
        texts: All of them, one after another.
        ngrams: The n that are counted.
        segment: Tokens of a segment.
    """

    def __init__(self, texts: Iterable[str], *, ngrams: tuple[int, ...] = (1, 2), segment: int = 100):
        self._words: dict[str, int] = {}
        self._grams = {n: DistinctGrams(n) for n in ngrams}
        self._segment, self._rest, self._shares, self._segments = segment, np.zeros(0, np.int32), 0.0, 0
        texts = iter(texts)
        while some := list(islice(texts, AT_ONCE)):
            self._add(some)

    def distinct(self, n: int) -> float:
        """Share of the n-grams that are distinct; 1 where there are none."""
        return self._grams[n].share

    @property
    def msttr(self) -> float | None:
        """Mean share of distinct tokens in whole segments; None where there is none."""
        return self._shares / self._segments if self._segments else None

    def _add(self, texts: list[str]) -> None:
        words, numbers, lengths = self._words, [], []
        for text in texts:
            tokens = wordpunct(text)
            numbers += [words.setdefault(token, len(words)) for token in tokens]
            lengths.append(len(tokens))
        ids, owners = np.array(numbers, np.int32), np.repeat(np.arange(len(texts)), lengths)
        for grams in self._grams.values():
            grams.add(ids, owners)
        self._add_segments(np.concatenate([self._rest, ids]))

    def _add_segments(self, ids: Ids) -> None:
        count = len(ids) // self._segment
        whole = np.sort(ids[: count * self._segment].reshape(count, self._segment))
        self._shares += float((1 + (np.diff(whole) != 0).sum(1)).sum()) / self._segment
        self._segments += count
        self._rest = ids[count * self._segment :]


class DistinctGrams:
    """Counts n-grams, and those that are distinct.

    Args:
        n: Tokens of a gram.
    """

    def __init__(self, n: int):
        self.n, self.count = n, 0
        self._type = np.dtype({1: np.int32, 2: np.int64}.get(n, (np.void, 4 * n)))
        self._seen, self._new = np.zeros(0, self._type), []

    def add(self, ids: Ids, owners: NDArray[np.integer]) -> None:
        """Those of some texts, joined; `owners`: of which text a token is, since no gram goes from one to the next."""
        if len(ids) < self.n:
            return
        inside = owners[: len(owners) - self.n + 1] == owners[self.n - 1 :]
        grams = np.lib.stride_tricks.sliding_window_view(ids, self.n)[inside]
        self.count += len(grams)
        self._new.append(np.unique(np.ascontiguousarray(grams).view(self._type).ravel()))
        if sum(map(len, self._new)) > len(self._seen):  # so that each is sorted a few times only
            self._merge()

    @property
    def share(self) -> float:
        self._merge()
        return len(self._seen) / self.count if self.count else 1.0

    def _merge(self) -> None:
        self._seen, self._new = np.unique(np.concatenate([self._seen, *self._new])), []
