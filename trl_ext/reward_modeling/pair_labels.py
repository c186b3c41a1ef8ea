"""What a pair may say of itself beside its completions: by how much the chosen one is better, and how likely."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from datasets import Dataset

LARGEST = torch.finfo(torch.float32).max  # margins become float32
MARGIN, PROBABILITY = "margin", "chosen_probability"  # columns


def check_label_columns(dataset: Dataset, name: str, *, call: str) -> None:
    """Raise a ValueError for the first label of a data set, where there are any, that the loss cannot take."""
    for column in (MARGIN, PROBABILITY):
        values: Iterable = dataset[column][:] if column in dataset.column_names else ()
        for index, value in enumerate(values):
            check_labels({column: value}, index, name, call=call)


def check_labels(row: Mapping[str, Any], index: int, name: str, *, call: str) -> None:
    """Raise a ValueError for labels of a row that the loss cannot take."""
    if MARGIN in row and not (_is_number(row[MARGIN]) and abs(row[MARGIN]) <= LARGEST):
        raise ValueError(
            f"{call}: the margin of row {index} of the {name} dataset is {row[MARGIN]!r}: expected a finite "
            "number, by how much the chosen completion is the better. Correct it, or drop the row or the column `margin`."
        )
    if PROBABILITY in row and not (_is_number(row[PROBABILITY]) and 0 <= row[PROBABILITY] <= 1):
        raise ValueError(
            f"{call}: the {PROBABILITY} of row {index} of the {name} dataset is {row[PROBABILITY]!r}: "
            "expected a number from 0 to 1, how likely it is that the chosen completion is the better; 1 is a plain pair. "
            f"Correct it, or drop the row or the column `{PROBABILITY}`."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
