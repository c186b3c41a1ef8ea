"""How many bytes a card holds, by its name or the size that it is sold as."""

import re

from trl_ext.memory_planning.card_speeds import card_named, cards_called

UNITS = {"GIB": 2**30, "MIB": 2**20, "GB": 2**30, "MB": 2**20, "": 2**30}
USABLE = 0.98  # of what a card is sold as: 24 GB hold 23.5 GiB


def card_bytes(given: str, *, flag: str = "trl-ext plan --gpu") -> int:
    """Bytes that a card holds: of "24GB", as sold, 98 %; of "23.5GiB" exactly those; of "RTX 4090" what torch counts.

    >>> round(card_bytes("24GB") / 2**30, 2), card_bytes("23.5 GiB") / 2**30, card_bytes("RTX 4090") / 2**30
    (23.52, 23.5, 23.5)
    """
    match = sold_size(given)
    if match is None and re.search(r"\d", given) and not re.match(r"\s*-", given):
        return card_named(given, call=flag).bytes
    if match is None or not float(match[1]):
        raise ValueError(
            f"{flag} {given!r}: expected a card's name, or a size with a unit. Give e.g. 'RTX 4090', the size as sold, "
            "e.g. 24GB, or what it holds exactly, e.g. 23.5GiB."
        )
    unit = match[2].upper()
    return int(float(match[1]) * UNITS[unit] * (1 if unit.endswith("IB") else USABLE))


def sold_size(given: str) -> re.Match | None:
    """What it says as a size; None of a name, of which some are a bare number."""
    return (
        None
        if cards_called(given)
        else re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(gib|mib|gb|mb|)\s*", given, flags=re.IGNORECASE)
    )
