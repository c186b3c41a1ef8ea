"""Rewards as they are named on the command line."""

import importlib.util
import inspect
import os
import sys
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import trl_ext
from trl_ext.cli.command_arguments import RewardArguments
from trl_ext.rewards.r3 import R3Reward
from trl_ext.rewards.relevance import RelevanceReward
from trl_ext.trainer_kit.near_names import near_name

R3 = ("r3", "R3Reward")  # names of what --relevance_encoder and its like are for
OF_R3 = ("relevance_encoder", "top_relevance", "length_cap", "tokenize")
FORMS = "r3, another of trl_ext such as RepetitionPenalty, a reward model, or module:name of a function"


def check_rewards(rewards: RewardArguments, *, needed: bool = True) -> None:
    """Raise a ValueError where a reward is needed and none is named, or an option would do nothing."""
    names = rewards.reward_funcs or []
    if needed and not names:
        raise ValueError(f"--reward_funcs: expected a reward. Give {FORMS}.")
    idle = [] if {*R3} & {*names} else [name for name in OF_R3 if getattr(rewards, name) is not None]
    if idle:
        raise ValueError(f"--{idle[0]}: it is of r3, which --reward_funcs does not name. Name r3, or leave it out.")


def named(name: str, rewards: RewardArguments) -> object:
    """A reward by its name: `r3` with its options, a function, or the path of a model, which stays one."""
    if name not in R3:
        return named_reward(name, flag="--reward_funcs")
    given = {name: getattr(rewards, name) for name in ("top_relevance", "length_cap")}
    options = {name: value for name, value in given.items() if value is not None}
    if rewards.relevance_encoder is not None:
        options["relevance"] = RelevanceReward(rewards.relevance_encoder)
    if rewards.tokenize is not None:
        place = rewards.tokenize if ":" in rewards.tokenize else f"trl_ext:{rewards.tokenize}"
        options["tokenize"] = named_reward(place, flag="--tokenize")
    return R3Reward(**options)


def named_reward(name: str, *, flag: str = "--reward") -> object:
    """What a name stands for, as trainers take it in `reward_funcs`.

    Args:
        name: Of a reward of trl_ext; `module:name` or `path/to/file.py:name` of a callable in TRL's protocol; of a class,
            one is made without arguments. Or else the path or hub id of a reward model, which is given back as it is.
        flag: By which it was named.

    Raises:
        ValueError: If there is no such thing, or it is not callable.

    >>> named_reward("RepetitionPenalty").ngram == named_reward("trl_ext:RepetitionPenalty").ngram == 3
    True
    >>> named_reward("my/reward-model")
    'my/reward-model'
    """
    place, colon, attribute = _with_module(name, flag).rpartition(":")
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
    reward = _made(reward, f"{flag} {name}") if isinstance(reward, type) else reward
    if not callable(reward):
        raise ValueError(f"{flag} {name}: it is {reward!r}, which cannot be called. Name a reward function.")
    return reward


def _with_module(name: str, flag: str) -> str:
    """A bare name of trl_ext with the module that it is of; any other as it is, and a folder is a model's."""
    if any(sign in name for sign in "/\\:.") or Path(name).exists():
        return name
    if name == "r3":
        return "trl_ext:R3Reward"
    public = [public for public in dir(trl_ext) if public[0].isupper()]  # classes; no function of ours is a reward
    if name in public:
        if not _scores(getattr(trl_ext, name)):
            raise ValueError(f"{flag} {name}: that is a name of trl_ext, and not of a reward. Give {FORMS}.")
        return f"trl_ext:{name}"
    meant = {_folded(known): known for known in ("r3", *public)}
    near = near_name(_folded(name), meant, cutoff=0.9)
    if near is not None:
        raise ValueError(f"{flag} {name}: there is no folder of that name. Did you mean {meant[near]}?")
    return name


def _scores(kind: type) -> bool:
    """Whether one of these is called with completions, as TRL calls rewards."""
    parameters = inspect.signature(kind.__call__).parameters if "__call__" in dir(kind) else {}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return "completions" in parameters or takes_any


def _folded(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _made(kind: type, call: str) -> object:
    """One without arguments."""
    try:
        return kind()
    except TypeError as error:
        raise ValueError(
            f"{call}: it cannot be made without arguments ({error}). Make one in a file, as judge = {kind.__name__}(…), "
            "and name it FILE.py:judge."
        ) from error


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
