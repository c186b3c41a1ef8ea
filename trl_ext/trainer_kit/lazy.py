"""Names that are imported when they are first used, so that importing a package loads nothing slow."""

from collections.abc import Callable
from importlib import import_module


def lazy_exports(
    package: str, exports: dict[str, tuple[str, ...]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package (PEP 562); its `__all__`, too, is what `__getattr__` says.

    Type checkers do not see through them: they read the `TYPE_CHECKING` block beside.

    Args:
        package: Its name.
        exports: By module, the names that are taken from it.
    """
    module_of = {name: module for module, names in exports.items() for name in names}

    def get(name: str) -> object:
        if name == "__all__":
            return sorted(module_of)
        if name not in module_of:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; its public names are {sorted(module_of)}"
            )
        return getattr(import_module(module_of[name]), name)

    return get, lambda: sorted(module_of)
