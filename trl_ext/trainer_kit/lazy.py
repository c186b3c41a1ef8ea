"""Names that are imported when they are first used, so that importing a package loads nothing slow."""

import ast
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


def lazy_exports(package: str) -> None:
    """Give a package its `__all__`, and the `__getattr__` and `__dir__` (PEP 562) that import its names when asked for.

    They are those that its block `if TYPE_CHECKING:` imports, and so written once. They are set from here, so that a type
    checker, which would take any name from a package with a `__getattr__`, knows the names in that block alone.
    """
    module = sys.modules[package]
    source = ast.parse(module.__loader__.get_source(package))
    block = next(node for node in source.body if isinstance(node, ast.If))
    module_of = {name.name: line.module for line in block.body for name in line.names}
    names = sorted(module_of)

    def get(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; its public names are {names}")
        with garbage_left():
            return getattr(import_module(module_of[name]), name)

    vars(module).update(__all__=names, __getattr__=get, __dir__=lambda: names)


@contextmanager
def garbage_left() -> Iterator[None]:
    """Inside, no garbage is looked for: a third of the time that torch, transformers and TRL take to be imported.

    They make half a million objects that stay, and the search would go through them ten times.
    """
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()
