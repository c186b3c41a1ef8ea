"""How a command that trains reads its flags and its YAML: by TRL's parser, with other words for what is wrong."""

import inspect
import os
import sys
from argparse import Action, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from trl import TrlParser

from trl_ext.cli.command_words import in_words_of
from trl_ext.cli.given_flags import OF_TRANSFORMERS, SEVERAL, Given, gathered, is_flag, split, written
from trl_ext.cli.help_format import OF_ALL, OneNameAndDefault, usage_of
from trl_ext.cli.option_files import options_in
from trl_ext.cli.plain_flags import options_of, path_of, refuse_word
from trl_ext.ppo.migration import OPTIONS, OlderOptions
from trl_ext.trainer_kit.config_checks import defaults_of
from trl_ext.trainer_kit.near_names import near_name
from trl_ext.trainer_kit.option_types import NO_RULE, UNFIT, annotations_of, expected, taken

PACKAGE = __name__.partition(".")[0]
WITHOUT_A_CARD = ("use_cpu", "bf16", "fp16")  # whoever gives one of these has chosen
REST = "further options, of TRL and transformers"


class CommandParser(TrlParser):
    """TRL's parser of dataclasses, with `--config FILE.yaml` whose values the flags overrule.

    Args:
        dataclass_types: Whose fields are the flags. Those that this package declares come first in the help.
        prog: The command, e.g. "trl-ext ppo".
        example: The shortest call that works, for usage and help; several where the command has several uses.
        description: What the command does.
        words: The flag that words before the first flag belong to; None: there may be none.
    """

    def __init__(
        self,
        dataclass_types: Sequence[type],
        *,
        prog: str,
        example: str | Sequence[str],
        description: str,
        words: str | None = None,
    ):
        super().__init__(
            dataclass_types,
            prog=prog,
            usage=usage_of(*([example] if isinstance(example, str) else example)),
            description=description,
            formatter_class=OneNameAndDefault,
            allow_abbrev=False,
        )
        self.words = words

    def read(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """One instance of each dataclass.

        Raises:
            ValueError: For a YAML file that is none, that names what no option is called, or that would set a variable
                of the environment that is not this command's; and whatever the dataclasses refuse.
            SystemExit: With the command's usage and code 2, for a flag that there is not.
        """
        path, flags = self._given(argv)
        values = {} if path is None else self._checked_file(Path(path))
        given, _ = self.parse_known_args(flags, Namespace(**dict.fromkeys(WITHOUT_A_CARD)))
        trains = any(action.dest == "use_cpu" for action in self._actions)
        if trains and all(getattr(given, name) is None and name not in values for name in WITHOUT_A_CARD):
            self._choose_device()
        read = self.parse_args_and_config([*([] if path is None else ["--config", path]), *flags])
        for instance in read:
            self._check_types(instance)
        return read

    def _given(self, argv: Sequence[str]) -> tuple[str | None, list[str]]:
        """The path of the YAML file, and the flags, each once; words that none has taken are `words`."""
        options = options_of(self)
        parts = split(argv, options)
        words = [part.values[0] for part in parts if part.flag is None]
        unknown = next(filter(is_flag, words), None)
        if unknown is not None:
            name = unknown.partition("=")[0]
            self.error(f"there is no flag {unknown}.{self._meant(name.lstrip('-'), '--{}')}")
        places = 0 if self.words is None else len(words) if options[f"--{self.words}"].nargs in SEVERAL else 1
        if len(words) > places:
            refuse_word(words[places], self)
        own = [Given(f"--{self.words}", words)] if words else []
        flags = gathered([*own, *(part for part in parts if part.flag is not None)], options, self)
        return path_of(flags, self), written([part for part in flags if part.flag != "--config"])

    def set_defaults_with_config(self, **values: Any) -> list[str]:
        """As TRL's; one value in the place of a list is a list of one."""
        several = {action.dest for action in self._actions if action.nargs == "+"}
        given = {name: [value] if name in several and _is_one(value) else value for name, value in values.items()}
        return super().set_defaults_with_config(**given)

    def _check_types(self, instance: Any) -> None:
        """Raise a ValueError for a value of YAML of another type than the flag's; a config of a trainer's has looked itself."""
        if not type(instance).__module__.startswith(f"{PACKAGE}.cli."):
            return
        kinds, defaults = annotations_of(type(instance)), defaults_of(instance)
        for name in (field.name for field in fields(instance) if _is_own(type(instance), field.name)):
            value = getattr(instance, name)
            if value == defaults[name] and type(value) is type(defaults[name]):
                continue
            if name == "lora_target_modules" and isinstance(value, str):  # TRL makes a text of a list of one
                continue
            if taken(value, kinds[name], NO_RULE) is UNFIT:
                raise ValueError(f"--{name} {value!r}: {expected(name, value, kinds[name], NO_RULE)}.")

    def _choose_device(self) -> None:
        """TRL trains in 16 bits unless it is told otherwise, and refuses a machine that has no card for it."""
        if not torch.accelerator.is_available():
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print(f"{self.prog}: no accelerator is at hand, so use_cpu=true and bf16=false", file=sys.stderr)
            self.set_defaults(use_cpu=True, bf16=False)

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        for text in (self.description, *OF_ALL):
            formatter.add_text(text)
        for title, actions in self._sections():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()

    def _sections(self) -> Iterator[tuple[str, list[Action]]]:
        """What the help lists, under its titles: first what the method adds, last what all trainers have."""
        left = {action.dest: action for action in reversed(self._actions)}  # of two of one name, the first
        for kind in self.dataclass_types:
            own = [left.pop(field.name) for field in fields(kind) if field.name in left and _is_own(kind, field.name)]
            yield getattr(kind, "_argument_group_name", f"what {kind.__name__} adds"), own
        rest = [action for action in self._actions if action is left.get(action.dest)]
        yield REST, [action for action in rest if action.dest not in ("help", "debug")]

    def _checked_file(self, path: Path) -> dict[str, Any]:
        """What it says, or a ValueError unless it is a YAML file of options that there are."""
        values, call = options_in(path), f"--config {path}"
        for key in values:
            if key != "env" and (not isinstance(key, str) or key not in self._names()):
                said = self._meant(str(key), "'{}'")
                raise ValueError(f"{call}: there is no option {key!r}.{said} {self.prog} --help lists all.")
        if not isinstance(values.get("debug", ""), str):
            raise ValueError(
                f"{call}: debug: {values['debug']!r}: expected transformers' option, {' or '.join(OF_TRANSFORMERS)}. For the "
                "traceback, give the flag --debug."
            )
        return values

    def _names(self) -> set[str]:
        return {action.dest for action in self._actions if action.dest != "help"}

    def _meant(self, name: str, form: str) -> str:
        """What is said of a name that there is not: what took its place, of TRL's own PPO, or the near one."""
        name = name.replace("-", "_").lower()
        if name in OPTIONS and any(issubclass(kind, OlderOptions) for kind in self.dataclass_types):
            return in_words_of(self.prog.split()[-1])(f" `{name}`, of TRL's own PPO, is now {OPTIONS[name]}.")
        near = near_name(name, self._names())
        return f" Did you mean {form.format(near)}?" if near else ""


def _is_one(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _is_own(kind: type, name: str) -> bool:
    """Whether a field was declared, or declared anew, in this package."""
    owner = next(base for base in kind.__mro__ if name in inspect.get_annotations(base))
    return owner.__module__.startswith(PACKAGE)
