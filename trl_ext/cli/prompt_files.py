"""Files of prompts, as people have them."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from trl_ext.sequences import prompt_rows
from trl_ext.sequences.text_shapes import with_text
from trl_ext.trainer_kit.row_files import READERS, UNREADABLE, MixedColumn, read_rows


def read_prompts(path: Path, column: str, flag: str = "--prompt-column") -> Dataset:
    """The rows of a .jsonl, .json, .csv or .parquet file, with the prompts in the column `prompt`.

    Args:
        path: The file; a .json file holds one list of objects.
        column: Where it has the prompts, text or messages.
        flag: By which that is given, for messages.

    Raises:
        ValueError: If it is missing, damaged, without rows or without the column, or for the first prompt that is none.
    """
    call = f"--prompts {path}"
    dataset = read_file(path, [column], call=call)
    images = {"image", "images"} & set(dataset.column_names)
    if images:
        raise ValueError(f"{call} has a column {images.pop()!r}: images are not supported. Drop it.")
    return _with_prompts(dataset, column, flag, call=call)


def read_file(path: Path, texts: Sequence[str], *, call: str, others: Sequence[str] = ()) -> Dataset:
    """The rows of a file, of which there must be some.

    Args:
        path: The file.
        texts: Columns that hold text or messages, and must be of one kind each.
        call: Who asks, for messages.
        others: Further columns that must be of one kind each.
    """
    if not path.is_file():
        raise ValueError(f"{call}: there is no such file. Give the path of a {', '.join(READERS)} file.")
    if path.suffix not in READERS:
        raise ValueError(f"{call}: expected a file that ends in {', '.join(READERS)}. Convert it to one of these.")
    try:
        dataset = read_rows(path, text=texts, convert=dict.fromkeys(texts, with_text), needed=(*texts, *others))
    except MixedColumn as error:
        raise ValueError(f"{call}: {error}. Give one kind in all rows.") from error
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{call}: it cannot be read ({reason}). It is damaged or not what its name says.") from error
    if not len(dataset):
        raise ValueError(f"{call}: it has no rows. Give at least one.")
    return dataset


def _with_prompts(dataset: Dataset, column: str, flag: str, *, call: str) -> Dataset:
    if column not in dataset.column_names:
        raise ValueError(
            f"{call}: it has the columns {dataset.column_names}, and no column {column!r}. Name the one with the "
            f"prompts by {flag}."
        )
    dataset = prompt_rows.read_prompts(dataset, call=call, column=column)
    if column == "prompt":
        return dataset
    if "prompt" in dataset.column_names:
        raise ValueError(f"{call}, {flag} {column}: it has a column 'prompt' too. Drop or rename that one.")
    return dataset.rename_column(column, "prompt")
