"""The command `trl-ext`."""

import argparse
import os
from pathlib import Path

from trl_ext import __version__
from trl_ext.cli.generate import add_generate
from trl_ext.cli.plan import add_plan
from trl_ext.trainer_kit.commands import ends_in_one_line


def main(argv: list[str] | None = None) -> None:
    """Run one subcommand; what is slow to import is imported only then. All of them end by `ends_in_one_line`."""
    args = _parser().parse_args(argv)
    with ends_in_one_line(f"trl-ext {args.command}", when_stopped=args.when_stopped):
        args.run(args)


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
    add_generate(commands)
    add_plan(commands)
    return parser


def _demo(args: argparse.Namespace) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything it needs is in the package
    from trl_ext.demo.chain import run_demo
    from trl_ext.trainer_kit.seeds import check_seed

    check_seed(args.seed, call=f"--seed {args.seed}")
    run_demo(args.output_dir, seed=args.seed, quick=args.quick)
