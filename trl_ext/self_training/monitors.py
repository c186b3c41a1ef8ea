"""What shows during a run whether it goes well: scores, lengths, and how varied the kept completions are."""

from collections.abc import Collection, Iterable, Iterator

from trl_ext.self_training.text_variety import TextVariety

DIVERSITY_LOSS = 0.7  # a warning below this share of what the Grow before had


def distinct(texts: Iterable[str], *, n: int) -> float:
    """Share of all n-grams of all texts that are distinct (Li et al., 2016, arXiv:1510.03055).

    It falls with the number of texts: compare sets of one size.

    >>> distinct(["a b c", "a b d"], n=2)  # ab, bc, ab, bd
    0.75
    """
    return TextVariety(texts, ngrams=(n,)).distinct(n)


def msttr(texts: Iterable[str], *, segment: int = 100) -> float | None:
    """Mean share of distinct tokens in segments of 100 (MSTTR-100); None with fewer than 100 tokens in all.

    Unlike `distinct`, it does not depend on how many texts there are.

    >>> msttr(["a b a b"], segment=2), msttr(["a"], segment=2)
    (1.0, None)
    """
    return TextVariety(texts, ngrams=(), segment=segment).msttr


def diversity_warning(before: Collection[str], now: Collection[str]) -> str | None:
    """A warning if the kept completions are much less varied than those of the Grow before; None if not.

    Both are judged by distinct-2 over equally many texts, since it falls with their number.

    >>> diversity_warning(["a b", "c d"], ["a b", "a b", "a b"])[:79]
    'distinct-2 of the kept completions fell from 1.000 to 0.500 within one stage: t'

    Args:
        before, now: What was kept of two Grows, one after the other.
    """
    count = min(len(before), len(now))
    shares = [distinct(_spread(texts, count), n=2) for texts in (before, now)]
    if shares[1] >= DIVERSITY_LOSS * shares[0]:
        return None
    return (
        f"distinct-2 of the kept completions fell from {shares[0]:.3f} to {shares[1]:.3f} within one stage: the policy "
        "may have found one answer for everything. Look at the Grow's file; raise the temperature, lower the learning "
        "rate, or stop at an earlier checkpoint."
    )


def _spread(texts: Collection[str], count: int) -> Iterator[str]:
    """So many of the texts, evenly from all of them."""
    places = (i * len(texts) // count for i in range(count))
    wanted = next(places, None)
    for place, text in enumerate(texts):
        if place == wanted:
            yield text
            wanted = next(places, None)


def is_level(means: list[float], *, stages: int) -> bool:
    """Whether the mean score has not risen for so many stages (RAFT's end of a run); never for 0.

    >>> is_level([1.0, 2.0, 1.9, 2.0, 1.5], stages=3), is_level([1.0, 2.0, 1.9, 2.1], stages=3)
    (True, False)
    """
    return 0 < stages < len(means) and max(means[-stages:]) <= max(means[:-stages])
