"""Checks that configs share: values in their ranges, and inherited options that mean nothing refused."""

import math
import numbers
import warnings
from dataclasses import MISSING, fields
from typing import Any

Range = tuple[float, float | None, bool]  # smallest, largest (None: no bound), whether the smallest itself is allowed


def check_ranges(config: Any, ranges: dict[str, Range], *, optional: tuple[str, ...] = ()) -> None:
    """Raise a ValueError for the first field outside its range.

    Args:
        config: A dataclass.
        ranges: By the fields' names.
        optional: Fields that may be None.
    """
    for name, (low, high, inclusive) in ranges.items():
        value = getattr(config, name)
        if value is None and name in optional:
            continue
        in_range = isinstance(value, numbers.Real) and math.isfinite(value)
        in_range = in_range and (value >= low if inclusive else value > low) and (high is None or value <= high)
        if not in_range:
            interval = f"{'[' if inclusive else '('}{low}, {'∞)' if high is None else f'{high}]'}"
            raise ValueError(
                f"{type(config).__name__}({name}={value!r}): it must be in {interval}. Give a number from there, or leave it "
                f"at {defaults_of(config)[name]!r}."
            )


def defaults_of(config: Any) -> dict[str, Any]:
    """The plain defaults of a dataclass, by the fields' names."""
    return {f.name: f.default for f in fields(config) if f.default is not MISSING}


def refuse_unused(config: Any, needed: dict[str, str]) -> None:
    """Raise a ValueError for the first option that was set although the switch that it belongs to is off.

    Args:
        config: A dataclass.
        needed: The switches' names by the options'.
    """
    defaults = defaults_of(config)
    for name, switch in needed.items():
        if getattr(config, name) != defaults[name] and not getattr(config, switch):
            raise ValueError(
                f"{type(config).__name__}({name}={getattr(config, name)!r}, {switch}=False): it does nothing without "
                f"{switch}=True. Set that, or leave it out."
            )


def refuse_meaningless(config: Any, reasons: dict[str, str]) -> None:
    """Raise a ValueError for the first inherited option that was set although the method gives it no meaning.

    Args:
        config: A dataclass.
        reasons: Why, by the fields' names; those that this version of the parent lacks are passed over.
    """
    defaults = defaults_of(config)
    for name, reason in reasons.items():
        if name in defaults and getattr(config, name) != defaults[name]:
            raise ValueError(
                f"{type(config).__name__}({name}={getattr(config, name)!r}): {reason}. Leave it at {defaults[name]!r}."
            )


def take_renamed(config: Any, names: dict[str, str]) -> None:
    """Give fields what was given under their former names, which are then None again, with a FutureWarning each.

    Called by `__post_init__`, so that the warning points at the line that makes the config.

    Args:
        config: A dataclass.
        names: The fields' names by their former ones.

    Raises:
        ValueError: If both names were given.
    """
    defaults = defaults_of(config)
    for former, name in names.items():
        value = getattr(config, former)
        if value is None:
            continue
        call = f"{type(config).__name__}({former}={value!r}"
        if getattr(config, name) != defaults[name]:
            raise ValueError(
                f"{call}, {name}={getattr(config, name)!r}): `{former}` is the former name of `{name}`. Give `{name}` alone."
            )
        warnings.warn(f"{call}): `{former}` is now `{name}`. Write {name}={value!r}.", FutureWarning, stacklevel=4)
        setattr(config, name, value)
        setattr(config, former, None)
