"""How the tiny models are trained from nothing."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def fit(
    model: nn.Module, loss_of: Callable[[object], Tensor], batches: Iterable, *, steps: int, learning_rate: float,
    max_norm: float = math.inf,
) -> float:  # fmt: skip
    """AdamW with a one-cycle rate, each batch read once; returns the mean loss of the last fifty steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    losses = []
    model.train()
    for batch in batches:
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return sum(losses[-50:]) / len(losses[-50:])
