"""A notebook's cells with their settings for a card, short ones, in this process: `python card_notebook.py NOTEBOOK`.

Where it runs, folders with the names of the hub's models stand for these, and the rows below for its data sets.
"""

import sys
import time
from pathlib import Path

import datasets
import matplotlib
import nbformat
from IPython.core.interactiveshell import InteractiveShell

from trl_ext.demo import load_world, preference_rows, sample_questions

SHORTER = {  # than FAST, in whichever cell it stands
    "ON_A_CARD = False": "ON_A_CARD = True",
    '"batch": 32, "micro_batch": 1': '"batch": 8, "micro_batch": 4',
    '"completion_length": 256': '"completion_length": 12',
}


def turns(prompt: str, answer: str | None = None) -> list[dict[str, str]]:
    asked = [{"role": "user", "content": prompt}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def hub_rows(name: str) -> list[dict]:
    """Of the small world, with the columns of a data set that the notebooks read."""
    questions = sample_questions(load_world(), held_out=False, count=200, seed=0)
    match name:
        case "trl-lib/ultrafeedback-prompt":
            return [{"prompt": turns(row["prompt"])} for row in questions]
        case "trl-lib/ultrafeedback_binarized":
            pairs = preference_rows(load_world(), held_out=False, count=200, seed=0)
            return [{side: turns(row["prompt"], row[side]) for side in ("chosen", "rejected")} for row in pairs]
        case "databricks/databricks-dolly-15k":
            kinds = {"closed": "open_qa", "open": "brainstorming"}
            return [
                {
                    "instruction": row["prompt"],
                    "context": "",
                    "response": row["reference"],
                    "category": kinds[row["query_type"]],
                }
                for row in questions
            ]
    raise ValueError(f"load_dataset({name!r}): no stand-in; add its columns to hub_rows in {__file__}.")


def load_dataset(name: str, split: str | None = None):
    rows = datasets.Dataset.from_list(hub_rows(name))
    return datasets.DatasetDict({"train": rows, "test": rows}) if split is None else rows


def main(path: str) -> None:
    datasets.load_dataset = load_dataset
    matplotlib.use("agg")
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    shell, started = InteractiveShell.instance(), time.process_time()
    for cell in cells:
        source = cell.source
        for old, new in SHORTER.items():
            source = source.replace(old, new)
        shell.run_cell(source).raise_error()
    assert shell.user_ns["ON_A_CARD"] and shell.user_ns["SIZE"]["batch"] == 8, "SHORTER is of another notebook"
    Path("seconds").write_text(str(time.process_time() - started))


if __name__ == "__main__":
    main(*sys.argv[1:])
