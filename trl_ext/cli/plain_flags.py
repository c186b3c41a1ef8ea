"""Flags and YAML of the commands that argparse reads, as the others' are read: each flag once, a near name for an unknown one."""

import os
from argparse import Action, ArgumentParser, BooleanOptionalAction
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from trl_ext.cli.given_flags import SEVERAL, Given, gathered, is_flag, split, written
from trl_ext.cli.option_files import options_in
from trl_ext.trainer_kit.near_names import near_name

CONFIG = Action(["--config"], "config")


def options_of(parser: ArgumentParser) -> dict[str, Action]:
    """Flags with what they take; `--config`, which the parser itself does not know, among them."""
    return {name: action for action in parser._actions for name in action.option_strings} | {"--config": CONFIG}


def arguments(argv: Sequence[str], parser: ArgumentParser) -> list[str]:
    """What argparse reads: words, then flags, those of the YAML file before the others.

    Raises:
        ValueError: For a YAML file that is none, or that names what no option is called.
        SystemExit: With the command's usage and code 2, for a flag that there is not or that is given twice.
    """
    options = options_of(parser)
    parts = split(argv, options)
    words = [part.values[0] for part in parts if part.flag is None]
    _check_words(words, parser, options)
    flags = gathered([part for part in parts if part.flag is not None], options, parser)
    path = path_of(flags, parser)
    flags = [part for part in flags if part.flag != "--config"]
    if path is None:
        return [*words, *written(flags)]
    own, given = _of_file(Path(path), parser, options), {options[part.flag].dest for part in flags}
    own_words = [word for part in own if part.flag is None for word in part.values]
    own_flags = [part for part in own if part.flag is not None and options[part.flag].dest not in given]
    return [*(words or own_words), *written([*own_flags, *flags])]


def path_of(flags: Sequence[Given], parser: ArgumentParser) -> str | None:
    """Of the YAML file."""
    for part in flags:
        if part.flag == "--config":
            if not part.values:
                parser.error("argument --config: expected the path of a YAML file")
            return part.values[0]
    return None


def refuse_word(word: str, parser: ArgumentParser) -> NoReturn:
    """End with a command's own usage, for a word that no flag takes."""
    parser.error(f"{word!r} belongs to no flag. Each value follows its flag; one with spaces needs quotes.")


def _check_words(words: Sequence[str], parser: ArgumentParser, options: Mapping[str, Action]) -> None:
    """End with a command's own usage, and the near flag, for a flag that it does not have, or a word too many."""
    flag = next(filter(is_flag, words), None)
    if flag is not None:
        near = near_name(flag.partition("=")[0].replace("_", "-"), options)
        parser.error(f"there is no flag {flag}." + (f" Did you mean {near}?" if near else ""))
    places = sum(not action.option_strings for action in parser._actions)
    if len(words) > places:
        refuse_word(words[places], parser)


def _of_file(path: Path, parser: ArgumentParser, options: Mapping[str, Action]) -> list[Given]:
    """A YAML file as flags, so that argparse looks at values as at those of a shell."""
    values, call = options_in(path), f"--config {path}"
    os.environ.update({name: str(value) for name, value in values.pop("env", {}).items()})
    flags = {action.dest: next(iter(action.option_strings), None) for action in parser._actions}
    flags |= {name.strip("-").replace("-", "_"): name for name, action in options.items() if action.nargs != 0}
    parts = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in flags or name in ("help", "config"):
            near = near_name(name, flags)
            said = f" Did you mean {near!r}?" if near else ""
            raise ValueError(f"{call}: there is no option {key!r}.{said} {parser.prog} --help lists all.")
        if value is not None:
            parts += _as_flag(flags[name], value, options, call=f"{call}: {key}: {value!r}")
    return parts


def _as_flag(flag: str | None, value: Any, options: Mapping[str, Action], *, call: str) -> list[Given]:
    action = options.get(flag)
    if isinstance(action, BooleanOptionalAction) or (action is not None and action.nargs == 0):
        if not isinstance(value, bool):
            raise ValueError(f"{call}: expected true or false.")
        if isinstance(action, BooleanOptionalAction):
            return [Given(flag if value else f"--no-{flag.removeprefix('--')}", [])]
        return [Given(flag, [])] if value else []
    several = value if isinstance(value, list) else [value]
    if len(several) != 1 and (action is None or action.nargs not in SEVERAL):
        raise ValueError(f"{call}: expected one value.")
    if not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in several):
        raise ValueError(f"{call}: expected text or a number.")
    return [Given(flag, [str(one) for one in several])]
