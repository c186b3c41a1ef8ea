"""How a command's usage and help look, whoever parses it."""

import shutil
import textwrap
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, BooleanOptionalAction, HelpFormatter

OF_ALL = (
    "--config FILE.yaml: any of these options, one `option: value` a line; flags overrule it.",
    "--debug: show the traceback too, where something is refused or stopped.",
)
LINE = 50  # characters of choices that stand beside a flag
HARD_SPACE = "\u00a0"
KINDS = {"string_to_bool": "BOOL", "int": "N", "float": "X", "str": "TEXT"}


class OneName(HelpFormatter):
    """Help with one name per flag, where a parser knows `--two_words` and `--two-words`."""

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        name = action.option_strings[0]
        if isinstance(action, BooleanOptionalAction):
            return f"--[no-]{name.removeprefix('--')}"
        values = "" if action.nargs == 0 else self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{name} {values}".strip()

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        return KINDS.get(getattr(action.type or str, "__name__", "value"), "VALUE")

    def _metavar_formatter(self, action: Action, default_metavar: str):
        if action.metavar is None and _are_many(action):
            return lambda count: ("NAME",) * count
        return super()._metavar_formatter(action, default_metavar)

    def _get_help_string(self, action: Action) -> str:
        text = super()._get_help_string(action) or ""
        return f"{text} One of {', '.join(map(str, action.choices))}." if _are_many(action) else text


class OneNameAndDefault(OneName, ArgumentDefaultsHelpFormatter):
    """With the default behind each flag's help."""


class PlainParser(ArgumentParser):
    """argparse's, with the usage and the help of the other commands.

    Args:
        example: The shortest call that works.
        options: As argparse's.
    """

    def __init__(self, *, example: str | None = None, **options):
        usage = example and usage_of(example)
        super().__init__(**options, usage=usage, formatter_class=OneName, allow_abbrev=False)

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        for text in (self.description, *OF_ALL):
            formatter.add_text(text)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_arguments([action for action in group._group_actions if action.dest != "help"])
            formatter.end_section()
        return formatter.format_help()


def _are_many(action: Action) -> bool:
    """Whether its choices are more than a line holds."""
    return bool(action.option_strings and action.choices) and sum(map(len, map(str, action.choices))) > LINE


def usage_of(*examples: str) -> str:
    """Calls that can be copied, one for each use that the command has, in lines that fit the terminal."""
    return "\n   or: ".join(map(_wrapped, examples))


def _wrapped(example: str) -> str:
    """A flag stays with its value."""
    width = shutil.get_terminal_size().columns - len("usage: ") - len(" \\")
    words = f"{example} [further options]".replace(" --", "\n--").replace(" [", "\n[").splitlines()
    joined = [word.replace(" ", HARD_SPACE) for word in words]
    lines = textwrap.wrap(" ".join(joined), width, break_on_hyphens=False, break_long_words=False)
    return " \\\n    ".join(lines).replace(HARD_SPACE, " ")
