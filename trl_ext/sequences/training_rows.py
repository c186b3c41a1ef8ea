"""What an Improve reads: kept samples as tokens and labels, in an order that is fixed for the whole Improve."""

from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from trl_ext.sequences.padding import right_padded

IGNORED = -100


class TrainingRow(TypedDict):
    """One sequence: the loss runs over the tokens whose label is not −100, i.e. the completion with its end."""

    input_ids: list[int]
    labels: list[int]
    old_log_probs: NotRequired[list[float]]  # RAFT++: of the completion's tokens, when the Grow began


def training_row(prompt_ids: list[int], completion_ids: list[int]) -> TrainingRow:
    """A sample as it was sampled: prompt and completion by their tokens, the loss on the completion alone.

    >>> training_row([5, 6], [7, 1])
    {'input_ids': [5, 6, 7, 1], 'labels': [-100, -100, 7, 1]}
    """
    return {"input_ids": [*prompt_ids, *completion_ids], "labels": [IGNORED] * len(prompt_ids) + [*completion_ids]}


def collate(rows: list[TrainingRow], *, pad_token_id: int) -> dict[str, Tensor]:
    """A batch `(B, L)`, padded on the right: `input_ids`, `attention_mask`, `labels` and, if there, `old_log_probs`."""
    ids, mask = right_padded([row["input_ids"] for row in rows], pad_token_id)
    labels, _ = right_padded([row["labels"] for row in rows], IGNORED)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if "old_log_probs" in rows[0]:
        old = torch.zeros(labels.shape)
        old[labels != IGNORED] = torch.tensor([value for row in rows for value in row["old_log_probs"]])
        batch["old_log_probs"] = old
    return batch
