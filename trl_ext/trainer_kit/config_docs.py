"""Docstrings of configs that say what each option means, from the fields' own help."""

import inspect
import textwrap
from dataclasses import MISSING, Field, field
from types import MappingProxyType
from typing import Any, TypeVar

Config = TypeVar("Config")


def option(default: Any, help: str, *, group: str | None = None) -> Any:
    """A field of a config with its help; with a group, the first of "Parameters that control <group>"."""
    metadata = {"help": help} | ({"group": group} if group else {})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def documented(config: type[Config]) -> type[Config]:
    """Class decorator of a dataclass: lists the fields that it declares itself in its docstring, by groups, above `Raises`.

    A group begins with the field whose metadata has `"group"`, the end of "Parameters that control …". The key is then taken
    away, since transformers' parser hands all metadata to argparse.
    """
    text, raises, errors = inspect.cleandoc(config.__doc__).partition("\n\nRaises:")
    lines = [text, "", "Parameters:"]
    for name in inspect.get_annotations(config):
        field = config.__dataclass_fields__[name]
        metadata = dict(field.metadata)
        if "group" in metadata:
            lines += [f"    > Parameters that control {metadata.pop('group')}", ""]
            field.metadata = MappingProxyType(metadata)
        lines += [*_described(field), ""]
    config.__doc__ = "\n".join(lines) + (raises + errors).removeprefix("\n")
    return config


def _described(field: Field) -> list[str]:
    kind = inspect.formatannotation(field.type).replace("typing.", "")
    default = field.default if field.default_factory is MISSING else field.default_factory()
    text = textwrap.wrap(field.metadata["help"], width=119, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return [f"    {field.name} (`{kind}`, *optional*, defaults to `{default!r}`):", *text]
