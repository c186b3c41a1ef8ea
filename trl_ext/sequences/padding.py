"""Sequences of tokens as one batch."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def right_padded(rows: list[list[int]], value: int, *, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """A batch `(B, L)`, padded on the right by a value, as in training, and its mask, 1 on real tokens.

    >>> right_padded([[5, 6], [7]], 0)
    (tensor([[5, 6],
            [7, 0]]), tensor([[1, 1],
            [1, 0]]))
    """
    ids = [torch.tensor(row, device=device) for row in rows]
    mask = [torch.ones_like(row) for row in ids]
    return pad_sequence(ids, batch_first=True, padding_value=value), pad_sequence(mask, batch_first=True)
