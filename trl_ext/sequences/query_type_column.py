"""What a column of query types holds."""

from collections.abc import Sequence
from typing import Any

from trl_ext.trainer_kit.near_names import near_name

TYPES = ("open", "closed")


def check_query_types(types: Sequence[Any], *, call: str) -> None:
    """Raise a ValueError for the first that is neither text nor None, or nearly one of `TYPES` and not that.

    Another text is the type of a route of one's own.
    """
    for row, kind in enumerate(types):
        if kind is None or kind in TYPES:
            continue
        if isinstance(kind, str) and kind.strip() and near_name(kind.strip().lower(), TYPES) is None:
            continue
        raise ValueError(
            f"{call}: expected 'open', 'closed' or None in the column `query_type`, got {kind!r} in row {row}. Mend it, or "
            "give the row None."
        )
