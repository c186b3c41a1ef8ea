"""Published speeds of common cards: what no run on them is faster than.

| Source | Cards |
|---|---|
| NVIDIA's whitepapers of GA102, AD102 and RTX Blackwell | RTX 3090, RTX A6000, RTX 4090, RTX 5090 |
| NVIDIA's data sheets of the cards | T4, A10, A10G, L4, L40S, A100, H100, H200 |

Products of tensor cores without sparsity, summed in fp32, as torch does; of cards that come in several forms the fastest
(SXM). In fp32 half as fast (TF32). Memory is what torch counts of it, from its messages when it is out of memory.
"""

import re
from dataclasses import dataclass

from trl_ext.trainer_kit.near_names import near_name

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A card as it is published.

    Args:
        name: As it is sold.
        sold: GB that it is sold with.
        gib: GiB that torch counts.
        tflops: 10¹² operations per second in 16 bits: a product and a sum are two.
        tops: The same in 8 bits.
        bandwidth: 10⁹ bytes per second of its memory.
    """

    name: str
    sold: int
    gib: float
    tflops: float
    tops: float
    bandwidth: float

    @property
    def bytes(self) -> int:
        return int(self.gib * GIB)

    def seconds(self, *, operations: float, in_8_bits: float, read: float) -> float:
        """Least time for so many operations and bytes, which it computes and reads at once.

        max(operations / rate + operations in 8 bits / their rate, bytes / bandwidth)

        >>> Card("a card", 1, 1.0, tflops=2.0, tops=4.0, bandwidth=100.0).seconds(operations=2e12, in_8_bits=2e12, read=3e11)
        3.0
        """
        computing = operations / (self.tflops * 1e12) + in_8_bits / (self.tops * 1e12)
        return max(computing, read / (self.bandwidth * 1e9))


CARDS = (
    Card("T4", 16, 14.5, 65, 130, 320),
    Card("RTX 3090", 24, 23.6, 71, 284, 936),
    Card("RTX 4090", 24, 23.5, 165.2, 660.6, 1008),
    Card("RTX 5090", 32, 31.3, 209.5, 838, 1792),
    Card("A10", 24, 22.0, 125, 250, 600),
    Card("A10G", 24, 22.0, 70, 140, 600),
    Card("L4", 24, 22.0, 121, 242.5, 300),
    Card("L40S", 48, 44.4, 362, 733, 864),
    Card("RTX A6000", 48, 47.4, 154.8, 309.7, 768),
    Card("A100 40GB", 40, 39.4, 312, 624, 1555),
    Card("A100 80GB", 80, 79.1, 312, 624, 2039),
    Card("H100", 80, 79.1, 989.4, 1979, 3350),
    Card("H200", 141, 139.8, 989.4, 1979, 4800),
)
BESIDE = re.compile(r"nvidia|geforce|tesla|\brtx|\bgpu\b|sxm\d?|pcie|\bhbm\de?|[\s_-]")  # in a name, of no matter here


def card_named(name: str, *, call: str) -> Card:
    """The card of a name, as it is sold or as torch says it.

    Raises:
        ValueError: For one that is not in the table, or that comes with different memory.
    """
    matching = cards_called(name)
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise ValueError(f"{call} {name!r}: expected one card. Give {' or '.join(repr(c.name) for c in matching)}.")
    known = [card.name for card in CARDS]
    near = near_name(name, known)
    hint = f"Did you mean {near!r}? " if near else ""
    raise ValueError(
        f"{call} {name!r}: expected one of {', '.join(known)}, whose published speed is known. {hint}Give the nearest that "
        "is at least as fast, or a size without time, e.g. 24GB."
    )


def cards_called(name: str) -> list[Card]:
    """Those that a name may mean.

    >>> [card.name for card in cards_called("NVIDIA A100-SXM4-80GB")], len(cards_called("a100")), cards_called("24GB")
    (['A100 80GB'], 2, [])
    """
    return [card for card in CARDS if _plain(name) in _names_of(card)]


def sold_with(gigabytes: float) -> list[str]:
    """Names of the cards that are sold with so much memory."""
    return [card.name for card in CARDS if card.sold == round(gigabytes)]


def _plain(name: str) -> str:
    return BESIDE.sub("", name.lower())


def _names_of(card: Card) -> set[str]:
    """With and without its memory; of cards by the same name, both."""
    bare = _plain(re.sub(r" \d+GB$", "", card.name))
    return {bare, f"{bare}{card.sold}gb"}
