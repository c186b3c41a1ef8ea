"""Checks that configs share: each option of its annotated type, within its rule, and set only where it does something."""

import types
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any

from trl_ext.trainer_kit.option_rules import Need, Rule
from trl_ext.trainer_kit.option_types import NO_RULE, UNFIT, annotations_of, expected, taken


def check_config(
    config: Any, rules: Mapping[str, Rule], *, unset: Mapping[str, tuple] = types.MappingProxyType({})
) -> None:
    """Raise a ValueError for the first option of another type than its annotation's, out of its rule, or without effect.

    A default passes every check, so an option that is written out with its default is as good as left out. Numbers of
    NumPy become Python's, whole floats in the place of whole numbers become whole, tuples in the place of lists lists;
    True is no number, and a number no switch. Annotations of other types than bool, int, float, str and lists are passed over.

    Args:
        config: A dataclass.
        rules: By the fields' names; those that this version of the parent lacks are passed over.
        unset: Further values, by the fields' names, that stand for "left out", e.g. what None becomes.
    """
    defaults, kinds = defaults_of(config), annotations_of(type(config))
    given = [name for name, default in defaults.items() if not _same(getattr(config, name), default)]
    for name in given:
        rule = rules.get(name, NO_RULE)
        value = checked(type(config).__name__, name, getattr(config, name), kinds[name], rule, default=defaults[name])
        object.__setattr__(config, name, value)  # also of a frozen one
    for name in given:
        if name in rules and getattr(config, name) not in (defaults[name], *unset.get(name, ())):
            _check_needs(config, name, rules[name].needs)


def checked(call: str, name: str, value: Any, kind: Any, rule: Rule = NO_RULE, **default: Any) -> Any:
    """The value as its type has it, or a ValueError that says what it must be.

    Args:
        call: Who is called, for the message.
        name, value, kind: The option, what it was given, and its annotation.
        rule: What else it must be.
        default: `default=…`, where there is one to leave it at.
    """
    new = taken(value, kind, rule)
    if new is not UNFIT and not (new is None and rule.required) and (new is None or rule.fits(new)):
        return new
    shown = f"{call}({name}={value!r}): "
    if rule.expected:
        raise ValueError(f"{shown}expected {rule.expected}.")
    leave = f", or leave it at {default['default']!r}" if default else ""
    raise ValueError(f"{shown}{expected(name, value, kind, rule)}{leave}.")


def checked_list(given: Any, *, call: str) -> Iterable:
    """What is given, or a ValueError where it is one thing, as text is, or none."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"{call}: expected a list, got {type(given).__name__}. Give one.")
    return given


def _check_needs(config: Any, name: str, needs: Need | tuple[Need, ...]) -> None:
    for need in (needs,) if isinstance(needs, Need) else needs:
        if not need.holds(config):
            names = dict.fromkeys((name, *need.shown))
            shown = ", ".join(f"{one}={_plain(getattr(config, one))!r}" for one in names)
            raise ValueError(f"{type(config).__name__}({shown}): {need.said}")


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _same(value: Any, default: Any) -> bool:
    """Whether it is the default: of its type too, since True is no 1."""
    return value is default or (type(value) is type(default) and value == default)


def defaults_of(config: Any) -> dict[str, Any]:
    """The defaults of a dataclass, by the fields' names."""
    made = {f.name: f.default_factory() for f in fields(config) if f.default_factory is not MISSING}
    return {f.name: f.default for f in fields(config) if f.default is not MISSING} | made


def refuse_meaningless(config: Any, reasons: dict[str, str]) -> None:
    """Raise a ValueError for inherited options that were set although the method gives them no meaning; all at once.

    Args:
        config: A dataclass.
        reasons: Why, by the fields' names; those that this version of the parent lacks are passed over.
    """
    defaults = defaults_of(config)
    said = [
        f"{type(config).__name__}({name}={getattr(config, name)!r}): {reason}. Leave it at {defaults[name]!r}."
        for name, reason in reasons.items()
        if name in defaults and getattr(config, name) != defaults[name]
    ]
    if said:
        raise ValueError(" ".join(said))


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
