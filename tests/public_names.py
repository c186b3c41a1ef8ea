"""What a user may import: a name that `trl_ext` or one of its rooms exports, and nothing deeper."""

import ast
from importlib import import_module


def private_imports(code: str) -> list[str]:
    """The imports of trl_ext in `code` that are of no public name, as dotted paths.

    >>> private_imports("from trl_ext import PPOConfig; from trl_ext.demo import load_world; import trl_ext")
    []
    >>> private_imports("from trl_ext.demo.world import load_world; from trl_ext.demo import world")
    ['trl_ext.demo.world.load_world', 'trl_ext.demo.world']
    """
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if _ours(alias.name) and alias.name.count(".") > 1]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and _ours(node.module or ""):
            public = _exported(str(node.module))
            found += [f"{node.module}.{alias.name}" for alias in node.names if alias.name not in public]
    return found


def _ours(module: str) -> bool:
    return module.split(".")[0] == "trl_ext"


def _exported(module: str) -> list[str]:
    return import_module(module).__all__ if module.count(".") <= 1 else []
