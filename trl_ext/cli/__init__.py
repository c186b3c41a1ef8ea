"""The command `trl-ext`."""

import argparse
import importlib
import os
from collections.abc import Sequence
from pathlib import Path

from trl_ext import __version__
from trl_ext.cli.generate import add_generate
from trl_ext.cli.plan import add_plan
from trl_ext.trainer_kit.commands import ends_in_one_line
from trl_ext.trainer_kit.near_names import near_name

BY_DATACLASS = {  # commands whose flags are those of TRL's parser: their modules, and what they do
    "reward": ("train_reward", "train a reward model on pairs"),
    "ppo": ("train_ppo", "train a policy with PPO on rewards"),
    "raft": ("train_raft", "train a policy with RAFT on rewards"),
    "rest": ("train_rest", "train a policy with ReST on rewards"),
    "score": ("score", "score a file of prompts and completions; pairs for DPO"),
    "evaluate": ("evaluate", "sample held-out prompts from policies, and compare them"),
    "report": ("report_runs", "one page about runs: what is wrong, curves, completions"),
    "export": ("export", "write a policy for transformers, llama.cpp, Ollama or vLLM"),
}
GOES_ON = "What is saved is kept: the same command goes on from there."


def main(argv: Sequence[str] | None = None) -> None:
    """Run one subcommand; what is slow to import is imported only then. All of them end by `ends_in_one_line`."""
    args, rest = _parser().parse_known_args(argv)
    if rest and args.command not in BY_DATACLASS:
        refuse_unknown(rest[0], args.own)
    with ends_in_one_line(f"trl-ext {args.command}", when_stopped=args.when_stopped):
        if args.command in BY_DATACLASS:
            importlib.import_module(f"trl_ext.cli.{BY_DATACLASS[args.command][0]}").main(rest)
        else:
            args.run(args)


def refuse_unknown(flag: str, parser: argparse.ArgumentParser) -> None:
    """End with a command's own usage, and the near flag, for one that it does not have."""
    known = [name for action in parser._actions for name in action.option_strings]
    near = near_name(flag.partition("=")[0], known)
    parser.error(f"there is no flag {flag}." + (f" Did you mean {near}?" if near else ""))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trl-ext", description="RLHF trainers and rewards on top of TRL.")
    parser.add_argument("--version", action="version", version=f"trl-ext {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="the whole chain, offline, on a CPU: SFT, reward model, then PPO, RAFT and ReST with R³"
    )
    demo.add_argument("--output-dir", type=Path, default=Path("trl_ext_demo"), help="where models and results go")
    demo.add_argument("--seed", type=int, default=0, help="of data order, initial heads and sampling")
    demo.add_argument("--quick", action="store_true", help="a shorter run, to see that everything works")
    demo.set_defaults(run=_demo, when_stopped="The same command begins anew, over what it has written.")
    for name, (_, text) in BY_DATACLASS.items():
        commands.add_parser(name, help=text, add_help=False).set_defaults(when_stopped=GOES_ON)
    add_generate(commands)
    add_plan(commands)
    for command in commands.choices.values():
        command.set_defaults(own=command)
    return parser


def _demo(args: argparse.Namespace) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything it needs is in the package
    from trl_ext.demo.chain import run_demo
    from trl_ext.trainer_kit.seeds import check_seed

    check_seed(args.seed, call=f"--seed {args.seed}")
    run_demo(args.output_dir, seed=args.seed, quick=args.quick)
