"""What `train_7b_24gb.py` reads: rows of a hub data set or a local file, and prompts that are not too long."""

from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.sequences import prompt_ids, read_prompts, warn_of_unread, with_text
from trl_ext.trainer_kit import READERS, read_rows


def load_rows(name: str, option: str, formats: list[list[str]]) -> Dataset:
    """Rows with the columns of one of the formats, and those only.

    Args:
        name: A local file, or `NAME` or `NAME:SPLIT` of a hub data set.
        option: Named in errors.
        formats: Lists of columns, the first that a data set has is taken.

    Raises:
        ValueError: If it is neither, or has no format's columns.
    """
    path = Path(name).expanduser()
    if path.suffix in READERS:
        if not path.is_file():
            raise ValueError(f"{option} {name}: there is no such file. Check the path.")
        named = {column for columns in formats for column in columns}
        rows = read_rows(path, text=named, convert=dict.fromkeys(named, with_text))
    else:
        hub_name, _, split = name.partition(":")
        try:
            rows = load_dataset(hub_name, split=split or "train")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{option} {name}: the hub does not give it ({error}). Check the spelling and the split, or name a file that "
                f"ends in {', '.join(READERS)}."
            ) from error
    found = next((columns for columns in formats if set(columns) <= set(rows.column_names)), None)
    if found is None:
        expected = " or ".join(", ".join(columns) for columns in formats)
        raise ValueError(
            f"{option} {name}: expected the columns {expected}, got {', '.join(rows.column_names)}. Rename them."
        )
    warn_of_unread(rows, found, call=f"{option} {name}")
    return rows.select_columns(found)


def fitting_prompts(rows: Dataset, tokenizer: PreTrainedTokenizerBase, longest: int) -> Dataset:
    """The prompts of at most so many tokens; says how many are longer."""
    rows = read_prompts(rows, call="--prompts")
    short = [i for i, prompt in enumerate(rows["prompt"]) if len(prompt_ids(prompt, tokenizer)) <= longest]
    print(f"prompts: {len(rows)}, of which {len(rows) - len(short)} are longer than {longest} tokens and left out")
    if not short:
        raise ValueError(f"--prompts: none of {len(rows)} has at most {longest} tokens. Raise --prompt-length.")
    return rows.select(short)
