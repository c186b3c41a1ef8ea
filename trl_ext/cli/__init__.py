"""The command `trl-ext`."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trl_ext import __version__
from trl_ext.cli.command_words import in_words_of
from trl_ext.cli.generate import add_generate
from trl_ext.cli.given_flags import is_flag, without_debug
from trl_ext.cli.help_format import PlainParser
from trl_ext.cli.plain_flags import arguments
from trl_ext.cli.plain_terminal import plain_without_terminal
from trl_ext.cli.plan import add_plan
from trl_ext.trainer_kit.commands import ends_in_one_line, whole_process
from trl_ext.trainer_kit.lazy import lazy_exports
from trl_ext.trainer_kit.near_names import near_name

if TYPE_CHECKING:
    from trl_ext.cli.named_rewards import named_reward as named_reward

lazy_exports(__name__)

BY_DATACLASS = {  # commands whose flags are those of TRL's parser: their modules, and what they do
    "reward": ("train_reward", "train a reward model on pairs"),
    "ppo": ("train_ppo", "train a policy with PPO on rewards"),
    "raft": ("train_raft", "train a policy with RAFT on rewards"),
    "rest": ("train_rest", "train a policy with ReST on rewards"),
    "score": ("score", "score a file of prompts and completions; pairs for DPO"),
    "label": ("label", "preferences or query types by a model's log-probabilities"),
    "probe": ("probe", "what a reward gives to texts that are made to fool it"),
    "evaluate": ("evaluate", "policies on held-out prompts, rewards on pairs: compare them"),
    "report": ("report_runs", "one page about runs: what is wrong, curves, completions"),
    "export": ("export", "write a policy for transformers, llama.cpp, Ollama or vLLM"),
}
DESCRIPTION = "RLHF trainers and rewards on top of TRL. `trl-ext COMMAND --help` lists a command's options."
GOES_ON = "What is saved is kept: the same command goes on from there."
ANEW = ("probe", "evaluate", "report", "export")  # commands that keep nothing of what was not finished


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand; what is slow to import is imported only then. All of them end by `ends_in_one_line`."""
    if argv is None:
        with whole_process():
            return main(sys.argv[1:])
    argv, debug = without_debug(argv)
    parser = _parser()
    name, command = _asked(argv, parser)
    stopped = command.get_default("when_stopped")
    with (
        ends_in_one_line(f"trl-ext {name}", when_stopped=stopped, debug=debug, say=in_words_of(name)),
        plain_without_terminal(),
    ):
        if name in BY_DATACLASS:
            importlib.import_module(f"trl_ext.cli.{BY_DATACLASS[name][0]}").main(argv[1:])
        else:
            args = parser.parse_args([name, *arguments(argv[1:], command)])
            args.run(args)


def _asked(argv: list[str], parser: PlainParser) -> tuple[str, PlainParser]:
    """The command; ends here for one that there is not, and for --help and --version."""
    commands = next(action.choices for action in parser._actions if action.dest == "command")
    if not argv or is_flag(argv[0]):
        parser.parse_args(argv)
    if argv[0] not in commands:
        near = near_name(argv[0], commands)
        said = f" Did you mean {near}?" if near else ""
        parser.error(f"there is no command {argv[0]!r}.{said} trl-ext --help lists all.")
    return argv[0], commands[argv[0]]


def _parser() -> PlainParser:
    parser = PlainParser(prog="trl-ext", description=DESCRIPTION, example="trl-ext COMMAND")
    parser.add_argument("--version", action="version", version=f"trl-ext {__version__}")
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, prog="trl-ext"
    )
    text = "the whole chain, offline, on a CPU: SFT, reward model, then PPO, RAFT and ReST with R³"
    demo = commands.add_parser("demo", help=text, description=f"{text[0].upper()}{text[1:]}.", example="trl-ext demo")
    demo.add_argument("--output-dir", type=Path, default=Path("trl_ext_demo"), help="where models and results go")
    demo.add_argument("--seed", type=int, default=0, help="of data order, initial heads and sampling")
    demo.add_argument("--quick", action="store_true", help="a shorter run, to see that everything works")
    demo.set_defaults(run=_demo, when_stopped="The same command begins anew, over what it has written.")
    for name, (_, text) in BY_DATACLASS.items():
        commands.add_parser(name, help=text, add_help=False).set_defaults(
            when_stopped="The same command begins anew." if name in ANEW else GOES_ON
        )
    add_generate(commands)
    add_plan(commands)
    return parser


def _demo(args: argparse.Namespace) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything it needs is in the package
    from trl_ext.demo.chain import run_demo
    from trl_ext.trainer_kit.seeds import check_seed

    check_seed(args.seed, call=f"--seed {args.seed}")
    run_demo(args.output_dir, seed=args.seed, quick=args.quick)
