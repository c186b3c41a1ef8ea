"""Names that are imported when they are first used, so that importing a package loads nothing slow."""

import sys
from importlib import import_module


def lazy_exports(package: str, exports: dict[str, tuple[str, ...]]) -> None:
    """Give a package its `__all__`, and the `__getattr__` and `__dir__` (PEP 562) that import these names when asked for.

    Set from here, so that a type checker, which would take any name from a package with a `__getattr__`, knows the names
    in its `TYPE_CHECKING` block alone.

    Args:
        package: Its name.
        exports: By module, the names that are taken from it.
    """
    module_of = {name: module for module, names in exports.items() for name in names}
    names = sorted(module_of)

    def get(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; its public names are {names}")
        return getattr(import_module(module_of[name]), name)

    vars(sys.modules[package]).update(__all__=names, __getattr__=get, __dir__=lambda: names)
