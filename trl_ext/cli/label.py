"""`trl-ext label`: which of two completions is the better, or whether queries are open or closed, by a model."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from rich.console import Console

from trl_ext.ai_feedback import PreferenceLabeler, sample_pairs
from trl_ext.cli.command_parser import CommandParser
from trl_ext.cli.data_rows import named_rows
from trl_ext.cli.label_progress import LabelProgress, WatchedLabeler
from trl_ext.cli.labelers import LabelerArguments, PreferenceArguments, preference_labeler, query_labeler
from trl_ext.cli.row_output import check_rows_output, write_rows
from trl_ext.query_types import label_query_types
from trl_ext.trainer_kit.config_checks import defaults_of
from trl_ext.trainer_kit.config_docs import option
from trl_ext.trainer_kit.own_folders import check_is_folder
from trl_ext.trainer_kit.whole_files import written_whole

EXAMPLES = (
    "trl-ext label --preferences pairs.jsonl --model MODEL --output labelled.parquet",
    "trl-ext label --query_types prompts.jsonl --output typed.parquet",
)
DESCRIPTION = (
    "Label rows by a model's log-probabilities of two answers, in both orders. --preferences: which of two completions is the "
    "better, as `chosen`, `rejected` and `chosen_probability`, for DPO or a reward model. --query_types: is a query open or "
    "closed, for R³; without --model by a classifier that is at hand, for English. Answers are written down as they come: after Ctrl-C or a kill the same command goes on, and asks nobody twice."
)


@dataclass
class LabelArguments:
    """What is labelled, and where to."""

    _argument_group_name = "rows in, labels out"

    preferences: str | None = option(
        None,
        "Rows with `prompt` and two completions, `completion_1` and `completion_2`, or `chosen` and `rejected`, with which "
        "labels are compared: a .jsonl, .json, .csv or .parquet file, or a hub id.",
    )
    query_types: str | None = option(
        None, "Rows with `prompt`, whose queries become open or closed: a file or a hub id."
    )
    dataset_config: str | None = option(None, "Of a hub data set: which of its configurations.")
    split: str = option("train", "Of a hub data set: the split that is labelled.")
    columns: list[str] | None = option(
        None, "Columns that have other names in the data, as `completion_1=a completion_2=b`."
    )
    pairs_per_prompt: int | None = option(
        None,
        "Of --preferences with samples, several rows a prompt with one `completion` each, as `trl-ext generate`, RAFT and ReST "
        "write them: how many pairs of completions that differ are drawn of each prompt.",
    )
    output: str | None = option(None, "A .parquet or .jsonl file to write.")
    keep: str | None = option(
        None,
        "A .jsonl file of answers, from which the same command goes on. None: beside --output, as OUTPUT.answers.jsonl.",
    )
    json: str | None = option(None, "Of preferences: a .json file for the report.")


@dataclass
class QueryTypeArguments:
    """How sure a query's type must be."""

    _argument_group_name = "query types"

    threshold: float | None = option(None, "Confidence below which there is no type. None: the labeler's own.")
    relabel: bool = option(False, "Whether rows that have a type get another.")


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    kinds = (LabelArguments, LabelerArguments, PreferenceArguments, QueryTypeArguments)
    rows, who, how, sure = CommandParser(kinds, prog="trl-ext label", example=EXAMPLES, description=DESCRIPTION).read(
        argv
    )
    output, keep = _checked(rows, how, sure)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    label = _label_preferences if rows.preferences is not None else _label_queries
    console.print(label(rows, who, how if rows.preferences is not None else sure, output, keep))


def _label_preferences(
    rows: LabelArguments, who: LabelerArguments, how: PreferenceArguments, output: Path, keep: Path
) -> str:
    dataset = _pairs(rows, _rows(rows, rows.preferences, "--preferences"), seed=how.seed)
    labeler: PreferenceLabeler = preference_labeler(who, how)
    with LabelProgress("pairs") as progress:
        labels = labeler.label(dataset, keep=keep, progress=progress)
    said = _written(labels, output)
    if rows.json is not None:
        with written_whole(Path(rows.json)) as partial:
            partial.write_text(json.dumps(labeler.report.to_dict(), indent=2) + "\n", encoding="utf-8")
    return f"{labeler.report}\n{said}"


def _label_queries(
    rows: LabelArguments, who: LabelerArguments, sure: QueryTypeArguments, output: Path, keep: Path
) -> str:
    dataset = _rows(rows, rows.query_types, "--query_types")
    labeler = query_labeler(who)
    with LabelProgress("queries") as progress:
        watched = WatchedLabeler(labeler, progress)
        labels = label_query_types(dataset, watched, threshold=sure.threshold, keep=keep, relabel=sure.relabel)
    counts = Counter(kind or "without a type" for kind in labels["query_type"])
    return f"{watched.cost()}\n{_written(labels, output)}: {', '.join(f'{count} {kind}' for kind, count in counts.most_common())}"


def _rows(args: LabelArguments, name: str, flag: str) -> Dataset:
    return named_rows(name, args.split, args, flag=flag)


def _pairs(args: LabelArguments, rows: Dataset, *, seed: int) -> Dataset:
    """The rows, or pairs of them, where they are samples."""
    is_samples = "completion" in rows.column_names and not {"completion_1", "chosen"} & {*rows.column_names}
    if args.pairs_per_prompt is None:
        if is_samples:
            raise ValueError(
                f"--preferences {args.preferences}: its rows have one `completion` each, and no other to compare it with. Add "
                "--pairs_per_prompt 1, which pairs those of one prompt."
            )
        return rows
    if not is_samples:
        raise ValueError(
            f"--pairs_per_prompt {args.pairs_per_prompt}: expected samples in --preferences, with `prompt` and `completion`; it has "
            f"the columns {rows.column_names}. Leave it out, or rename by --columns."
        )
    return sample_pairs(rows, per_prompt=args.pairs_per_prompt, seed=seed)


def _written(labels: Dataset, output: Path) -> str:
    again = write_rows(output, labels.to_list(), call=f"--output {output}")
    return f"{'Complete already. ' if again else ''}{output}: {len(labels)} rows"


def _checked(args: LabelArguments, how: PreferenceArguments, sure: QueryTypeArguments) -> tuple[Path, Path]:
    """Where labels go and where answers are kept; a ValueError for what does not go together."""
    if (args.preferences is None) == (args.query_types is None):
        raise ValueError("--preferences or --query_types: expected rows of one kind. Give one of the two.")
    idle, flag = (sure, "--preferences") if args.query_types is None else (how, "--query_types")
    set_ = [name for name, default in defaults_of(idle).items() if getattr(idle, name) != default]
    if args.query_types is not None:
        set_ += [name for name in ("json", "pairs_per_prompt") if getattr(args, name) is not None]
    if set_:
        raise ValueError(f"--{set_[0]}: it does nothing beside {flag}. Leave it out.")
    if args.output is None:
        raise ValueError("--output: expected the name of a .parquet or .jsonl file. Give one.")
    output = Path(args.output).expanduser()
    check_rows_output(output, call=f"--output {args.output}")
    if args.json is not None:
        if not args.json.endswith(".json"):
            raise ValueError(f"--json {args.json}: expected a name that ends in .json.")
        check_is_folder(Path(args.json).parent, call=f"--json {args.json}")
    keep = output.with_name(f"{output.name}.answers.jsonl") if args.keep is None else Path(args.keep).expanduser()
    source = Path(args.preferences or args.query_types).expanduser().resolve()
    if source in (output.resolve(), keep.resolve()):
        flag = "--output" if source == output.resolve() else "--keep"
        raise ValueError(f"{flag}: that is the file that is read. Give another name.")
    return output, keep
