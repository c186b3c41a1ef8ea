"""Rewards as they are named on the command line."""

import importlib.util
import os
import sys
from operator import attrgetter
from pathlib import Path
from types import ModuleType


def named_reward(name: str, *, flag: str = "--reward") -> object:
    """What a name stands for, as trainers take it in `reward_funcs`.

    Args:
        name: `module:name` or `path/to/file.py:name` of a callable in TRL's protocol (of a class, one is made without
            arguments), or else the path or hub id of a reward model, which is given back as it is.
        flag: By which it was named.

    Raises:
        ValueError: If there is no such thing, or it is not callable.

    >>> named_reward("trl_ext:RepetitionPenalty").ngram
    3
    >>> named_reward("my/reward-model")
    'my/reward-model'
    """
    place, colon, attribute = name.rpartition(":")
    if Path(name).is_file() or name.endswith(".py"):
        raise ValueError(
            f"{flag} {name}: it is a file. Name what is in it, as {name}:NAME, or the folder of a reward model."
        )
    if not colon or Path(name).exists():
        return name
    try:
        reward = attrgetter(attribute)(_module(place))
    except Exception as error:  # a module may raise anything while it is imported
        raise ValueError(
            f"{flag} {name}: it cannot be imported ({type(error).__name__}: {error}). Give module:name or "
            "path/to/file.py:name."
        ) from error
    reward = reward() if isinstance(reward, type) else reward
    if not callable(reward):
        raise ValueError(f"{flag} {name}: it is {reward!r}, which cannot be called. Name a reward function.")
    return reward


def _module(place: str) -> ModuleType:
    """A module by its name, also of the current folder, or by the path of its file."""
    if not place.endswith(".py"):
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        return importlib.import_module(place)
    name = str(Path(place).resolve())  # which no installed module has
    spec = importlib.util.spec_from_file_location(name, place)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
