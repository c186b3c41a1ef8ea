"""What was written behind a command: each flag with its values, whatever the order; words that belong to no flag apart."""

from argparse import Action, ArgumentParser
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trl_ext.trainer_kit.commands import DEBUG

SEVERAL = ("+", "*")  # of a flag that takes any number of values
BOOLEANS = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")
OF_TRANSFORMERS = ("underflow_overflow", "tpu_metrics_debug")  # what its option of the same name is told


class Given(NamedTuple):
    """A flag as it was written, with its values; `flag` is None for a word that no flag has taken."""

    flag: str | None
    values: list[str]


def without_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """The other words, and whether the traceback is asked for; `--debug underflow_overflow` is transformers'.

    >>> without_debug(["ppo", "--debug", "--beta", "0"]), without_debug(["ppo", "--debug", "underflow_overflow"])[1]
    ((['ppo', '--beta', '0'], True), False)
    """
    nexts = [*argv[1:], ""]
    kept = [word for word, after in zip(argv, nexts, strict=False) if word != DEBUG or _for_transformers(after)]
    return kept, len(kept) < len(argv)


def _for_transformers(word: str) -> bool:
    return any(name in word for name in OF_TRANSFORMERS)


def split(argv: Sequence[str], options: Mapping[str, Action]) -> list[Given]:
    """The flags with what each takes, by argparse's rules: one of several values takes all words up to the next flag."""
    parts, rest = [], list(argv)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        name = _known(flag, options)
        if name is None:
            parts.append(Given(None, [flag + equals + value]))
        elif equals:
            parts.append(Given(name, [value]))
        else:
            taken = _count(options[name], rest)
            parts.append(Given(name, rest[:taken]))
            del rest[:taken]
    return parts


def gathered(parts: Sequence[Given], options: Mapping[str, Action], parser: ArgumentParser) -> list[Given]:
    """With each flag once: one of several values gathers them, another that comes twice ends the command."""
    whole: dict[str, Given] = {}
    for part in parts:
        action = options[part.flag]
        before = whole.get(action.dest)
        if before is not None and action.nargs not in SEVERAL:
            shown = " and ".join(dict.fromkeys(" ".join(one) for one in (_written(before), _written(part))))
            parser.error(f"argument {part.flag}: it may be given once; there is {shown}")
        whole[action.dest] = part if before is None else Given(before.flag, before.values + part.values)
    return list(whole.values())


def written(parts: Sequence[Given]) -> list[str]:
    """As argparse reads them."""
    return [word for part in parts for word in _written(part)]


def is_flag(word: str) -> bool:
    """Whether a word looks like one; a negative number does not.

    >>> is_flag("--beta"), is_flag("-1e-3"), is_flag("-")
    (True, False, False)
    """
    return word.startswith("-") and len(word) > 1 and not word[1].isdigit() and word[1] != "."


def _written(part: Given) -> list[str]:
    if len(part.values) == 1 and part.values[0].startswith("-"):
        return [f"{part.flag}={part.values[0]}"]
    return [part.flag, *part.values]


def _known(flag: str, options: Mapping[str, Action]) -> str | None:
    """With either kind of dash."""
    return next((name for name in (flag, flag.replace("_", "-")) if is_flag(flag) and name in options), None)


def _count(action: Action, rest: Sequence[str]) -> int:
    """How many of the next words are its values."""
    free = next((at for at, word in enumerate(rest) if is_flag(word)), len(rest))
    if action.nargs in SEVERAL:
        return free
    if action.nargs == "?":  # a switch
        return int(free > 0 and rest[0].lower() in BOOLEANS)
    return min(free, 1 if action.nargs is None else int(action.nargs))
