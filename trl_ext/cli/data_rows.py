"""The rows that a command learns from: a file, or a data set of the hub, with its columns renamed."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError

from trl_ext.cli.command_arguments import DataArguments
from trl_ext.cli.prompt_files import read_file
from trl_ext.cli.streamed_rows import first_row, streamed_file
from trl_ext.trainer_kit.loading import DAMAGED, why_unloadable
from trl_ext.trainer_kit.row_files import READERS

# Columns that hold text or messages, whoever reads them.
TEXTS = (
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "completion_1",
    "completion_2",
    "reference",
    "query_type",
    "text",
    "messages",
)
LABELS = ("margin", "chosen_probability", "completions", "ranks")  # that a reward model learns from


def train_rows(args: DataArguments, *, streamed: bool = False) -> Dataset | IterableDataset:
    """What is learned from; a ValueError where it is not named, or cannot be read.

    Args:
        args: What is named.
        streamed: Whether it is read as it comes.
    """
    if args.dataset_name is None:
        raise ValueError(
            f"--dataset_name: expected a {', '.join(READERS)} file, or the hub id of a data set. Give one."
        )
    read = named_stream if streamed else named_rows
    return read(args.dataset_name, args.dataset_train_split, args, flag="--dataset_name")


def eval_rows(args: DataArguments, *, asked: bool) -> Dataset | None:
    """What is held out.

    Args:
        args: What is named.
        asked: Whether the config evaluates.
    """
    if args.eval_dataset_name is not None:
        if not asked:
            raise ValueError(
                f"--eval_dataset_name {args.eval_dataset_name}: it would not be read. Add --eval_strategy steps or epoch, "
                "or leave it out."
            )
        return named_rows(args.eval_dataset_name, args.dataset_test_split, args, flag="--eval_dataset_name")
    if not asked:
        return None
    if args.dataset_name is None or _is_file(args.dataset_name):
        raise ValueError("--eval_strategy: expected rows to hold out. Give --eval_dataset_name a file or a hub id.")
    return named_rows(args.dataset_name, args.dataset_test_split, args, flag="--dataset_name")


def named_rows(name: str, split: str, args: DataArguments, *, flag: str) -> Dataset:
    """The rows at a path or hub id."""
    call, columns = f"{flag} {name}", column_names(args.columns)
    if _is_file(name):
        texts, labels = ([columns.get(name, name) for name in names] for names in (TEXTS, LABELS))
        rows = read_file(Path(name).expanduser(), texts, call=call, others=labels)
    else:
        rows = _loaded(name, split, args.dataset_config, call=call)
    return renamed(rows, columns, call=call)


def named_stream(name: str, split: str, args: DataArguments, *, flag: str) -> IterableDataset:
    """The same, read as they come; the first one now."""
    call, columns = f"{flag} {name}", column_names(args.columns)
    if not _is_file(name):
        rows = _loaded(name, split, args.dataset_config, call=call, streaming=True)
        check_renames(list(first_row(rows, call=call)), columns, call=call)
        return rows.rename_columns({old: new for new, old in columns.items()})
    read = partial(streamed_file, Path(name).expanduser(), [columns.get(name, name) for name in TEXTS], call=call)
    check_renames(list(first_row(read({}), call=call)), columns, call=call)
    return read(columns)


def _loaded(name: str, split: str, config: str | None, *, call: str, **how: bool) -> Dataset | IterableDataset:
    """Of the hub, or of a folder with files of rows."""
    try:
        return load_dataset(name, config, split=split, **how)
    except (*DAMAGED, DatasetsError, ValueError) as error:
        raise ValueError(
            f"{call}: no data set can be loaded from it ({why_unloadable(error)}). Give a {', '.join(READERS)} file, or the "
            "id of a data set of the hub that can be reached or was downloaded before."
        ) from error


def column_names(pairs: list[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Old names by new ones.

    >>> column_names(["prompt=question"])
    {'prompt': 'question'}
    """
    if isinstance(pairs, Mapping):
        return dict(pairs)
    pairs = [pairs] if isinstance(pairs, str) else pairs or []
    for pair in pairs:
        if not isinstance(pair, str) or pair.count("=") != 1 or not all(pair.split("=")):
            raise ValueError(f"--columns {pair}: expected NEW=OLD, as in prompt=question.")
    return dict(pair.split("=") for pair in pairs)


def renamed(rows: Dataset, columns: Mapping[str, str], *, call: str) -> Dataset:
    """The rows with these columns under their new names."""
    check_renames(rows.column_names, columns, call=call)
    return rows.rename_columns({old: new for new, old in columns.items()})


def check_renames(names: Sequence[str], columns: Mapping[str, str], *, call: str) -> None:
    """Raise a ValueError for old names that are not there, or new ones that are."""
    for new, old in columns.items():
        if old not in names:
            raise ValueError(f"{call}: it has the columns {names}, and no {old!r} to be `{new}`. Mend --columns.")
        if new in names and new not in columns.values():
            raise ValueError(f"{call}: it has a column {new!r} already, beside {old!r}. Mend --columns, or drop one.")


def _is_file(name: str) -> bool:
    path = Path(name).expanduser()
    return path.suffix in READERS or path.is_file()
