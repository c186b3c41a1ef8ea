"""`trl-ext probe`: what rewards give to texts that are made to fool them."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from trl_ext.cli.command_arguments import DataArguments, RewardArguments
from trl_ext.cli.command_parser import CommandParser
from trl_ext.cli.data_rows import train_rows
from trl_ext.cli.named_rewards import check_rewards, named
from trl_ext.diagnostics import probe_reward
from trl_ext.trainer_kit.config_docs import option

EXAMPLE = "trl-ext probe --reward_funcs REWARD --dataset_name rows.jsonl"
DESCRIPTION = (
    "Score texts that are made to fool a reward, beside an honest answer: the prompt copied, an endless list, one sentence over "
    "and over, another subject, nothing, punctuation, stop words, the answer and then filler. The table says which of them earn "
    "more than the answer. Nothing is sampled or trained."
)


@dataclass
class ProbeArguments:
    """What is probed with."""

    _argument_group_name = "texts"

    honest: str = option("reference", "Column with an honest answer to each prompt.")
    limit: int = option(50, "Rows that are read, from the first on.")
    words: int = option(150, "Length of the long texts.")
    missing_eos_penalty: float = option(0.0, "PPO's: what a text that never ends loses.")
    max_completion_length: int | None = option(None, "The trainer's, which `r3` takes as its L. None: 512.")


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    kinds = (ProbeArguments, RewardArguments, DataArguments)
    args, rewards, data = CommandParser(kinds, prog="trl-ext probe", example=EXAMPLE, description=DESCRIPTION).read(
        argv
    )
    check_rewards(rewards)
    if args.limit < 1:
        raise ValueError(f"--limit {args.limit}: expected at least 1.")
    rows = train_rows(data)
    rows = rows.select(range(min(args.limit, len(rows))))
    options = {"words": args.words, "missing_eos_penalty": args.missing_eos_penalty}
    console = Console(highlight=False)
    for name in rewards.reward_funcs:
        probe = probe_reward(
            named(name, rewards),
            rows,
            honest=args.honest,
            max_completion_length=args.max_completion_length,
            **options,
        )
        console.print(probe.table())
