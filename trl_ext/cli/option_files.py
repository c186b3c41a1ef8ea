"""YAML files of options."""

from pathlib import Path
from typing import Any

import yaml

ENV_PREFIXES = ("HF_", "TRL_EXT_", "CUDA_VISIBLE_DEVICES")  # of variables that a file may set


def options_in(path: Path) -> dict[Any, Any]:
    """What a file says; a ValueError unless it holds options with values, and sets no variable that is not this command's."""
    call = f"--config {path}"
    values = _mapping(path, call)
    if "env" in values:
        _check_environment(values["env"], call)
    return values


def _mapping(path: Path, call: str) -> dict[Any, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ValueError(
            f"{call}: expected a YAML file of options and plain values ({reason}). Mend it: one `option: value` a line, no tags."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{call}: expected `option: value` in each line, got {type(values).__name__}. Mend it.")
    return values


def _check_environment(variables: Any, call: str) -> None:
    """Raise a ValueError for variables that a file from elsewhere must not set, such as LD_PRELOAD or PATH."""
    if not isinstance(variables, dict):
        raise ValueError(f"{call}: expected `env` to hold variables with their values, got {variables!r}. Mend it.")
    for name in variables:
        if not str(name).startswith(ENV_PREFIXES):
            raise ValueError(
                f"{call}: its `env` would set {name}; expected names that begin with {', '.join(ENV_PREFIXES)}. If you "
                "mean it, set it in your shell."
            )
