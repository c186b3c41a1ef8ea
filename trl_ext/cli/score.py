"""`trl-ext score`: rewards over a file of prompts and completions, and pairs of the best and the worst of each prompt."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from trl_ext.cli.command_arguments import RewardArguments
from trl_ext.cli.command_parser import CommandParser
from trl_ext.cli.generate_files import RECORD_KEY, already_complete, check_parts
from trl_ext.cli.generate_progress import PartProgress
from trl_ext.cli.named_rewards import check_rewards, named
from trl_ext.cli.score_pairs import check_pairs_output, write_pairs
from trl_ext.cli.score_prompts import PromptColumns
from trl_ext.cli.score_rows import Columns, checked_columns, file_fingerprint, row_parts, scored, table_schema
from trl_ext.generation.sample_files import SampleFiles, write_table
from trl_ext.rewards.reward_callables import reward_functions
from trl_ext.rewards.weighted_rewards import Scorer, check_weights
from trl_ext.trainer_kit.config_docs import option
from trl_ext.trainer_kit.own_folders import check_is_folder
from trl_ext.trainer_kit.run_record import write_record
from trl_ext.trainer_kit.seeds import check_seed, stable_seed

EXAMPLES = (
    "trl-ext score samples.parquet --reward_funcs REWARD --output scored.parquet",
    "trl-ext score scored.parquet --pairs best-worst --pairs_output pairs.parquet",
)
DESCRIPTION = (
    "Score a file of prompts and completions with any reward: a Grow, what `trl-ext generate` wrote, or your own. Its columns "
    "are kept, and reach the rewards; those of the prompts' own file, which a Grow lacks, reach them by --prompts. Parts are written as they come: after a kill the same command goes on. With --pairs, "
    "the best and the worst completion of each prompt become a file for DPO or a reward model."
)


@dataclass
class ScoreArguments:
    """What is scored, and where to."""

    _argument_group_name = "samples in, scores out"

    samples: str | None = option(
        None, "A .parquet, .jsonl, .json or .csv file with prompts and completions, text or messages."
    )
    prompts: str | None = option(
        None,
        "The file of prompts that the samples were made from: its further columns reach the rewards too, by the samples' "
        "`row` or their prompt. They are not written again.",
    )
    prompts_column: str = option("prompt", "Its column with the prompts.")
    output: str | None = option(None, "A .parquet file to write; parts go into a folder beside it.")
    prompt_column: str = option("prompt", "Column with the prompts.")
    completion_column: str = option("completion", "Column with the completions.")
    reward_weights: list[float] | None = option(None, "One per reward; 0 only watches it. None: 1 each.")
    pairs: str | None = option(
        None, "`best-worst`: also write pairs of each prompt's best and worst, to --pairs_output."
    )
    pairs_output: str | None = option(None, "A .parquet or .jsonl file of prompt, chosen, rejected and their scores.")
    max_completion_length: int | None = option(None, "The trainer's, which `r3` takes as its L. None: 512.")
    rows_per_part: int = option(1024, "Rows that are read, scored and written together.")
    seed: int = option(0, "Of rewards that draw random numbers.")


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    kinds = (ScoreArguments, RewardArguments)
    args, rewards = CommandParser(
        kinds, prog="trl-ext score", example=EXAMPLES, description=DESCRIPTION, words="samples"
    ).read(argv)
    source, output = _checked(args, rewards)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if rewards.reward_funcs:
        score_file(source, SampleFiles(output), args, rewards, console)
        source = output
    if args.pairs is not None:
        console.print(write_pairs(source, Path(args.pairs_output), args.prompt_column, args.completion_column))


def _checked(args: ScoreArguments, rewards: RewardArguments) -> tuple[Path, Path | None]:
    """Both files; a ValueError for what does not go together."""
    check_seed(args.seed, call=f"--seed {args.seed}")
    if args.samples is None:
        raise ValueError("--samples: expected a file with prompts and completions. Give one.")
    if args.rows_per_part < 1:
        raise ValueError(f"--rows_per_part {args.rows_per_part}: expected at least 1.")
    if args.pairs not in (None, "best-worst"):
        raise ValueError(f"--pairs {args.pairs}: expected best-worst.")
    if (args.pairs is None) != (args.pairs_output is None):
        raise ValueError("--pairs best-worst and --pairs_output FILE go together. Give both, or neither.")
    if args.pairs_output is not None:
        check_pairs_output(Path(args.pairs_output))
    check_rewards(rewards, needed=args.pairs is None)
    check_weights(
        args.reward_weights, len(rewards.reward_funcs or []), given=f"--reward_weights {args.reward_weights}"
    )
    if not rewards.reward_funcs:
        if args.prompts is not None:
            raise ValueError("--prompts without --reward_funcs: nothing reads them. Leave it out, or give a reward.")
        if args.output is not None:
            raise ValueError(
                "--output without --reward_funcs: nothing is scored anew. Leave it out, or give a reward."
            )
        return Path(args.samples), None
    if args.output is None or not args.output.endswith(".parquet"):
        raise ValueError(f"--output {args.output}: expected the name of a file that ends in .parquet.")
    if Path(args.output).resolve() == Path(args.samples).resolve():
        raise ValueError(f"--output {args.output}: that is the file that is read. Give another name.")
    check_is_folder(Path(args.output).parent, call=f"--output {args.output}")
    return Path(args.samples), Path(args.output)


def score_file(
    source: Path, files: SampleFiles, args: ScoreArguments, rewards: RewardArguments, console: Console
) -> None:
    """Do whatever of it is not on disk yet; ends with one line of what the file holds."""
    columns = Columns(args.prompt_column, args.completion_column)
    schema, count = table_schema(source, columns, size=args.rows_per_part)
    prompts = None if args.prompts is None else PromptColumns(Path(args.prompts), args.prompts_column)
    record = _record(source, args, rewards)
    if not already_complete(files, record):
        check_parts(files, record)
        named_rewards = [named(name, rewards) for name in rewards.reward_funcs]
        first = next(row_parts(source, schema, columns, size=args.rows_per_part))
        functions = filter(
            callable, named_rewards
        )  # the others are models, which read no column, and are loaded only then
        checked_columns(first, first.to_pylist(), functions, columns, prompts, part=0)
        scorer = _scorer(args, named_rewards)
        write_record(files.parts, record)
        with PartProgress("scoring", count) as progress:
            for index, table in enumerate(row_parts(source, schema, columns, size=args.rows_per_part)):
                if not files.scored(index).exists():
                    write_table(files.scored(index), scored(table, scorer, columns, prompts, part=index))
                progress.advance()
        files.finish(count, {}, {RECORD_KEY: json.dumps(record, sort_keys=True).encode()})
    _tell(files.finished, console)


def _record(source: Path, args: ScoreArguments, rewards: RewardArguments) -> dict:
    """What decides the scores; as it was before there were --prompts, where none are given."""
    read = {"samples": file_fingerprint(source)}
    left_out = {"output", "pairs", "pairs_output"}
    if args.prompts is None:
        left_out |= {"prompts", "prompts_column"}
    else:
        read["prompts"] = file_fingerprint(Path(args.prompts))
    record = json.loads(json.dumps(vars(args) | vars(rewards) | read))
    return {"prompts_per_part": args.rows_per_part, "command": "score"} | {
        name: value for name, value in record.items() if name not in left_out
    }


def _scorer(args: ScoreArguments, named_rewards: list) -> Scorer:
    given = {"max_completion_length": args.max_completion_length, "weights": args.reward_weights}
    functions = reward_functions(named_rewards, **given, call="trl-ext score")
    return Scorer(functions, args.reward_weights or [1.0] * len(functions), seed=stable_seed(args.seed, "score"))


def _tell(path: Path, console: Console) -> None:
    scores = pa.dataset.dataset(path).to_table(columns=["score"])["score"]
    mean = pa.compute.mean(scores).as_py()
    unscored = f", {scores.null_count} without a score" if scores.null_count else ""
    console.print(f"{path}: {len(scores)} rows{'' if mean is None else f', mean score {mean:.4g}'}{unscored}")
