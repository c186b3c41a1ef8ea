"""Values of the types that options have: what fits an annotation, as what, and how a message calls it."""

import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np

from trl_ext.trainer_kit.option_rules import Rule

UNFIT = object()  # what `taken` makes of a value of another type
NO_RULE = Rule()
CALLED = {int: "whole number", float: "number", str: "text"}


def annotations_of(config: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields. As they were written: HfArgumentParser changes the types in its fields."""
    return {name: kind for cls in reversed(config.__mro__) for name, kind in inspect.get_annotations(cls).items()}


def taken(value: Any, kind: Any, rule: Rule = NO_RULE) -> Any:
    """The value as an annotation has it, UNFIT where it does not; as it is, where the annotation has types of others.

    >>> taken(2.0, int), taken(2.5, int) is UNFIT, taken(True, float) is UNFIT, taken((1, 2), list[float] | None)
    (2, True, True, [1, 2])
    """
    if not (rule.typed and _is_known(kind)):
        return value
    fits = (TYPES[typing.get_origin(member) or member](value, member, rule) for member in _members(kind))
    return next((new for new in fits if new is not UNFIT), UNFIT)


def _is_known(kind: Any) -> bool:
    if typing.get_origin(kind) is list:
        return all(map(_is_known, typing.get_args(kind)))
    return kind in TYPES if (members := _members(kind)) == (kind,) else all(map(_is_known, members))


def _members(kind: Any) -> tuple:
    """The types of an annotation."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _none(value: Any, kind: Any, rule: Rule) -> Any:
    return None if value is None else UNFIT


def _switch(value: Any, kind: Any, rule: Rule) -> Any:
    return bool(value) if isinstance(value, bool | np.bool_) else UNFIT


def _number(value: Any, kind: Any, rule: Rule) -> Any:
    if not isinstance(value, numbers.Real) or isinstance(value, bool | np.bool_):
        return UNFIT
    finite = math.isfinite(value)
    allowed = rule.interval is None or (finite and rule.allows(value))
    if not allowed or (kind is int and not (finite and value == int(value))):
        return UNFIT
    plain = isinstance(value, int) or (kind is float and type(value) is float)
    return value if plain else kind(value)


def _text(value: Any, kind: Any, rule: Rule) -> Any:
    fits = value in rule.words if rule.words else isinstance(value, str | PathLike)
    return value if fits else UNFIT


def _list(value: Any, kind: Any, rule: Rule) -> Any:
    if not isinstance(value, list | tuple | np.ndarray):
        return UNFIT
    member = next(iter(typing.get_args(kind)), Any)
    values = [taken(one, member, rule) for one in value]
    return UNFIT if any(one is UNFIT for one in values) else values


TYPES: dict[Any, Callable[[Any, Any, Rule], Any]] = {
    type(None): _none, bool: _switch, int: _number, float: _number, str: _text, list: _list,
}  # fmt: skip


def expected(name: str, value: Any, kind: Any, rule: Rule) -> str:
    """What a value of an annotation must be: a sentence without its end."""
    if rule.words:
        *others, last = map(repr, rule.words)
        return f"choose {'one of ' if others[1:] else ''}{', '.join(others)} or {last}"
    (kind,) = [member for member in _members(kind) if member is not type(None)][:1]
    if typing.get_origin(kind) is list:
        member = next(iter(typing.get_args(kind)), Any)
        each = f", each in {rule.interval}" if rule.interval else ""
        text = f"expected a list of {CALLED.get(member, 'value')}s{each}"
        return text if isinstance(value, list | tuple) else f"{text}, got one value. Write {name}=[{value!r}]"
    if kind is bool:
        return "it must be True or False. Give one of them"
    if rule.interval:
        return f"it must be in {rule.interval}. Give a {CALLED[kind]} from there"
    return "it must be text. Give some" if kind is str else f"it must be a {CALLED[kind]}. Give one"
