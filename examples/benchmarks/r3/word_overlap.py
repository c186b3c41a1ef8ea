"""Word overlap by BM25, rare words counting more; by `bm25s`, which only the benchmarks here need."""

import importlib.util

import numpy as np


def check_library(script: str) -> None:
    """End the program where the library is not installed; asked before hours of other work."""
    if importlib.util.find_spec("bm25s") is None:
        raise SystemExit(f"{script}: the column of BM25 needs bm25s. pip install bm25s")


class BM25:
    """Scores of documents for a query, by Lucene's idf, which is never negative.

    Args:
        documents: The words of each.
    """

    def __init__(self, documents: list[list[str]]):
        import bm25s

        self.count, self.index = len(documents), bm25s.BM25()
        self.index.index(documents, show_progress=False)

    def get_scores(self, words: list[str]) -> np.ndarray:
        """One per document; 0 of those, and for a query, that have no word in common."""
        known = [
            word for word in words if word and word in self.index.vocab_dict
        ]  # it has "" for those that it has not
        return self.index.get_scores(known) if known else np.zeros(self.count)
