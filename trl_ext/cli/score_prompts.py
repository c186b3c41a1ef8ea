"""The file of prompts that samples were made from: its further columns reach the rewards of `trl-ext score`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_ext.cli.prompt_files import read_prompts
from trl_ext.generation.completion_files import key_of
from trl_ext.self_training.grow import reward_columns
from trl_ext.sequences.texts import Text

SHOWN = 60  # characters of a prompt in a message


class PromptColumns:
    """The further columns of a file of prompts, for samples of those prompts.

    A Grow, or what `trl-ext generate` wrote, says in its column `row` which prompt of the file a sample has; where that is
    another prompt, or there is no such column, the prompt itself says it.

    Args:
        path: A .parquet, .jsonl, .json or .csv file.
        column: Where it has the prompts.

    Raises:
        ValueError: Where it cannot be read, or has no prompts.
    """

    def __init__(self, path: Path, column: str):
        self.call = f"--prompts {path}"
        self.dataset = read_prompts(path, column, flag="--prompts_column")
        self.keys = [key_of(prompt) for prompt in self.dataset["prompt"][:]]
        self.rows: dict[str, list[int]] = {}
        for row, key in enumerate(self.keys):
            self.rows.setdefault(key, []).append(row)

    def beside(self, own: Mapping[str, list], prompts: Sequence[Text], rows: Sequence[Any]) -> dict[str, list]:
        """The samples' own columns, and those of the file.

        Args:
            own: What the samples bring.
            prompts, rows: Of each sample; None, or anything that is no row of the file, where it does not say so.
        """
        keys = [key_of(prompt) for prompt in prompts]
        by_row = all(self._is_at(row, key) for row, key in zip(rows, keys, strict=True))
        found = reward_columns(self.dataset, list(rows) if by_row else [self._row_of(key) for key in keys])
        twice = sorted(found.keys() & own.keys())
        if twice:
            raise ValueError(
                f"{self.call}: the column {twice[0]!r} is in --samples too. Drop or rename it in one of the two."
            )
        return {**own, **found}

    def _is_at(self, row: Any, key: str) -> bool:
        return type(row) is int and 0 <= row < len(self.keys) and self.keys[row] == key

    def _row_of(self, key: str) -> int:
        rows = self.rows.get(key)
        if rows is None:
            raise ValueError(
                f"{self.call}: none of its {len(self.keys)} prompts is that of a sample, {key[:SHOWN]!r}. Give the file that "
                "the samples were made from."
            )
        first, *others = (reward_columns(self.dataset, [row]) for row in rows)
        if any(other != first for other in others):
            raise ValueError(
                f"{self.call}: its rows {rows[0]} and {rows[1]} have one prompt, {key[:SHOWN]!r}, and different columns, and "
                "no `row` of --samples says which is meant. Keep one of them."
            )
        return rows[0]
