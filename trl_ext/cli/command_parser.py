"""How a command that trains reads its flags and its YAML: by TRL's parser, with other words for what is wrong."""

import inspect
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from trl import TrlParser

from trl_ext.trainer_kit.config_checks import defaults_of
from trl_ext.trainer_kit.near_names import near_name
from trl_ext.trainer_kit.option_types import NO_RULE, UNFIT, annotations_of, expected, taken

ENV_PREFIXES = ("HF_", "TRL_EXT_", "CUDA_VISIBLE_DEVICES")  # of variables that a YAML file may set
PACKAGE = __name__.partition(".")[0]
WITHOUT_A_CARD = ("use_cpu", "bf16", "fp16")  # whoever gives one of these has chosen
REST = "further options, of TRL and transformers"


class OneName(ArgumentDefaultsHelpFormatter):
    """Help with one name per flag, where the parser knows `--two_words` and `--two-words`."""

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        values = "" if action.nargs == 0 else self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{action.option_strings[0]} {values}".strip()

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        kind = getattr(action.type, "__name__", "value")
        return {"string_to_bool": "BOOL", "int": "N", "float": "X", "str": "TEXT"}.get(kind, "VALUE")


class CommandParser(TrlParser):
    """TRL's parser of dataclasses, with `--config FILE.yaml` whose values the flags overrule.

    Args:
        dataclass_types: Whose fields are the flags. Those that this package declares come first in the help.
        prog: The command, e.g. "trl-ext ppo".
        example: The shortest call that works, for usage and help.
        description: What the command does.
        words: The flag that words before the first flag belong to; None: there may be none.
    """

    def __init__(
        self,
        dataclass_types: Sequence[type],
        *,
        prog: str,
        example: str,
        description: str,
        words: str | None = None,
    ):
        super().__init__(
            dataclass_types,
            prog=prog,
            usage=f"{example} [further options]",
            description=description,
            formatter_class=OneName,
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
        argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
        if self.words and argv and not argv[0].startswith("-"):
            argv = [f"--{self.words}", *argv]
        flags, values = list(argv), {}
        if "--config" in flags:
            at = flags.index("--config")
            if at + 1 == len(flags):
                self.error("argument --config: expected the path of a YAML file")
            values = self._checked_file(Path(flags[at + 1]))
            del flags[at : at + 2]
            if "--config" in flags:
                self.error("argument --config: it may be given once")
        given, unknown = self.parse_known_args(flags, Namespace(**dict.fromkeys(WITHOUT_A_CARD)))
        if unknown:
            self._refuse(unknown[0])
        trains = any(action.dest == "use_cpu" for action in self._actions)
        if trains and all(getattr(given, name) is None and name not in values for name in WITHOUT_A_CARD):
            self._choose_device()
        read = self.parse_args_and_config(argv)
        for instance in read:
            self._check_types(instance)
        return read

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
            print(f"{self.prog}: no accelerator is at hand, so use_cpu=true and bf16=false", file=sys.stderr)
            self.set_defaults(use_cpu=True, bf16=False)

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        formatter.add_text("--config FILE.yaml: any of these options, one `option: value` a line; flags overrule it.")
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
        yield REST, [action for action in self._actions if action.dest != "help" and action is left.get(action.dest)]

    def _checked_file(self, path: Path) -> dict[str, Any]:
        """What it says, or a ValueError unless it is a YAML file of options that there are."""
        call = f"--config {path}"
        values = _mapping(path, call)
        for key in values:
            if key == "env":
                _check_environment(values[key], call)
            elif not isinstance(key, str) or key not in self._names():
                raise ValueError(
                    f"{call}: there is no option {key!r}.{self._near(str(key))} {self.prog} --help lists all."
                )
        return values

    def _refuse(self, flag: str) -> NoReturn:
        if not flag.startswith("-"):
            self.error(f"{flag!r} belongs to no flag. Each value follows its flag; one with spaces needs quotes.")
        self.error(f"there is no flag {flag}.{self._near(flag.lstrip('-').partition('=')[0])}")

    def _names(self) -> set[str]:
        return {action.dest for action in self._actions if action.dest != "help"}

    def _near(self, name: str) -> str:
        near = near_name(name.replace("-", "_").lower(), self._names())
        return f" Did you mean {near!r}?" if near else ""


def _is_one(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _is_own(kind: type, name: str) -> bool:
    """Whether a field was declared, or declared anew, in this package."""
    owner = next(base for base in kind.__mro__ if name in inspect.get_annotations(base))
    return owner.__module__.startswith(PACKAGE)


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
