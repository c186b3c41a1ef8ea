"""`trl-ext evaluate`: policies on held-out prompts, side by side; with --pairs rewards, by evaluate_rewards.py."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset, concatenate_datasets
from rich.console import Console
from rich.table import Table

from trl_ext.cli.command_arguments import DataArguments, RewardArguments, bits_of
from trl_ext.cli.command_parser import CommandParser
from trl_ext.cli.data_rows import train_rows
from trl_ext.cli.evaluate_rewards import SHARED, PairArguments, check_belongs, evaluate_rewards
from trl_ext.cli.evaluated_files import add_to_parquet, already_complete, output_file, record_of, yet_to_write
from trl_ext.cli.named_rewards import check_rewards, named
from trl_ext.evaluation import Evaluation, evaluate
from trl_ext.shared_base.shared_base import SharedBase
from trl_ext.trainer_kit.config_docs import option
from trl_ext.trainer_kit.whole_files import written_whole
from trl_ext.trainer_kit.whole_text import short_name

EXAMPLES = (
    "trl-ext evaluate START PPO --dataset_name held-out.jsonl --reward_funcs REWARD --reference START",
    "trl-ext evaluate --pairs pairs.jsonl --reward_funcs REWARD OTHER",
)
DESCRIPTION = (
    "Sample held-out prompts from policies, and measure: rewards, KL to a reference, length, ends, variety. Each policy is "
    "compared with the first, prompt by prompt. With --pairs no policy is needed: how often do rewards prefer the better of two "
    "completions?"
)


@dataclass
class EvaluateArguments:
    """Which policies are looked at, and how."""

    _argument_group_name = "what is evaluated"

    policies: list[str] | None = option(
        None, "Models or adapters, by path or hub id; the first is what others are compared with."
    )
    base: str | None = option(None, "What adapters go on, by path or hub id. None: the base that each names.")
    load_in_8bit: bool = option(False, "Load that base once, in LLM.int8().")
    load_in_4bit: bool = option(False, "Load that base once, in NF4.")
    reference: str | None = option(None, "What KL is measured to, e.g. where training began. None: no KL.")
    references_column: str = option("reference", "Answers whose perplexity is measured, where there is such a column.")
    max_completion_length: int = option(512, "In tokens, as in training.")
    num_samples: int = option(1, "Completions per prompt.")
    temperature: float = option(1.0, "Of sampling; 0 takes the likeliest token.")
    batch_size: int | None = option(None, "Completions sampled at once. None: what memory allows.")
    seed: int = option(0, "The same seed gives the same samples.")
    output: str | None = option(None, "A .parquet file for the samples, each with its scores.")


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    kinds = (EvaluateArguments, PairArguments, RewardArguments, DataArguments)
    args, pairs, rewards, data = CommandParser(
        kinds, prog="trl-ext evaluate", example=EXAMPLES, description=DESCRIPTION, words="policies"
    ).read(argv)
    check_belongs(pairs, args, data)
    if pairs.pairs is None:
        evaluate_policies(args, rewards, data)
        return
    shared = {name: getattr(args, name) for name in SHARED}
    evaluate_rewards(pairs, rewards, data, **shared)


def evaluate_policies(args: EvaluateArguments, rewards: RewardArguments, data: DataArguments) -> None:
    """Print what is found of each policy, and write the samples where asked."""
    _check(args)
    check_rewards(rewards, needed=False)
    files = {"output": output_file("output", args.output)}
    record = record_of(args, rewards, data, rows=data.dataset_name)
    if already_complete(files, missing := yet_to_write(files, record)):
        return
    rows, functions = train_rows(data), [named(name, rewards) for name in rewards.reward_funcs or []]
    base = shared_base(args)
    evaluations = {name: _evaluated(name, rows, functions, base, args) for name in args.policies}
    console = Console(highlight=False)
    console.print(measures_table(evaluations))
    for name, evaluation in list(evaluations.items())[1:]:
        console.print(differences_table(name, evaluation, args.policies[0], evaluations[args.policies[0]]))
    for path in missing.values():
        with written_whole(path) as partial:
            samples_of(evaluations).to_parquet(partial)
            add_to_parquet(partial, record)
        print(f"{path}: samples with their scores")


def _check(args: EvaluateArguments) -> None:
    """Raise a ValueError for what cannot be evaluated."""
    if not args.policies:
        raise ValueError("--policies: expected one or several models or adapters, by path or hub id. Give one.")
    if len({*args.policies}) < len(args.policies):
        raise ValueError(f"--policies {' '.join(args.policies)}: one is named twice. Give each once.")
    if bits_of(args) and args.base is None:
        raise ValueError("--load_in_8bit, --load_in_4bit: expected --base, which is loaded so. Give it.")


def shared_base(args: EvaluateArguments) -> SharedBase | str | None:
    """The base, loaded once where it is to be in fewer bits."""
    bits = bits_of(args)
    return args.base if bits is None else SharedBase.from_pretrained(args.base, bits=bits)


def _evaluated(name: str, rows: Dataset, functions: list, base, args: EvaluateArguments) -> Evaluation:
    return evaluate(
        name,
        rows,
        functions,
        base=base,
        max_completion_length=args.max_completion_length,
        reference=args.reference,
        references_column=args.references_column,
        num_samples=args.num_samples,
        temperature=args.temperature,
        batch_size=args.batch_size,
        seed=args.seed,
    )


def measures_table(evaluations: dict[str, Evaluation]) -> Table:
    """A row per measure, a column per policy, ± its standard error."""
    table = Table(
        "", *(short_name(name) for name in evaluations), title="means ± standard errors", title_justify="left"
    )
    for measure in dict.fromkeys(key for evaluation in evaluations.values() for key in evaluation.summary):
        table.add_row(measure, *(_cell(evaluation, measure) for evaluation in evaluations.values()))
    return table


def differences_table(name: str, evaluation: Evaluation, first: str, other: Evaluation) -> Table:
    """What differs, and whether so many prompts could have shown it."""
    table = Table(
        "", "difference", "seen from", "", title=f"{short_name(name)} less {short_name(first)}", title_justify="left"
    )
    for measure, found in evaluation.compare(other).items():
        difference = f"{found['difference']:+.4g} ± {found['error']:.2g}"
        resolved = "" if abs(found["difference"]) >= found["detectable"] else "not resolved"
        said = "equal" if found["difference"] == found["error"] == 0 else resolved
        table.add_row(measure, difference, f"{found['detectable']:.2g}", said)
    return table


def _cell(evaluation: Evaluation, measure: str) -> str:
    value, error = evaluation.summary.get(measure), evaluation.errors.get(measure)
    if value is None:
        return "·"
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def samples_of(evaluations: dict[str, Evaluation]) -> Dataset:
    """All samples, each with its policy."""
    parts = [each.samples.add_column("policy", [name] * len(each.samples)) for name, each in evaluations.items()]
    return concatenate_datasets(parts)
