"""The first sample of each prompt as AlpacaEval reads outputs: a JSON list of instruction, output, generator."""

import json
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset

from trl_ext.sequences.texts import last_user_text, text_of
from trl_ext.trainer_kit.whole_files import written_whole

INSTRUCTION, SET = "instruction", "dataset"  # AlpacaEval's names; taken from the prompts where they have them


def check_free(path: Path | None, *, complete: bool) -> None:
    """Refuse a name that is taken, before anything is sampled; a finished command may be given again."""
    if path is None:
        return
    if path.suffix != ".json":
        raise ValueError(f"--alpaca-eval {path}: expected a name that ends in .json.")
    if path.exists() and not complete:
        raise ValueError(f"--alpaca-eval {path}: there is a file already. Give another name, or remove it.")


def write_alpaca_eval(path: Path | None, samples: Path, prompts: Dataset, *, name: str) -> None:
    """Write it, or see that it is as it would be written.

    Args:
        path: A .json file; None: nothing is asked for.
        samples: The parquet file of all samples.
        prompts: With their columns; `instruction`, where there is one, is what was asked, without a template around it.
        name: Of the model, as its leaderboard would show it.
    """
    if path is None:
        return
    text = json.dumps(_rows(samples, prompts, name), ensure_ascii=False, indent=1) + "\n"
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise ValueError(f"--alpaca-eval {path}: it holds something else than these samples. Give another name.")
        return
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _rows(samples: Path, prompts: Dataset, name: str) -> list[dict[str, str]]:
    table = pq.read_table(samples, columns=["row", "sample", "prompt", "completion"])
    first = {row["row"]: row for row in table.to_pylist() if row["sample"] == 0}
    return [_row(first[i], prompts[i], name) for i in sorted(first)]


def _row(sample: dict, asked: dict, name: str) -> dict[str, str]:
    given = {key: asked[key] for key in (SET, INSTRUCTION) if isinstance(asked.get(key), str)}
    return given | {
        INSTRUCTION: given.get(INSTRUCTION, last_user_text(sample["prompt"])),
        "output": text_of(sample["completion"]).strip(),
        "generator": name,
    }
