"""How near vectors are to each other. N pairs, D dimensions."""

from typing import Literal

import torch
from torch import Tensor, nn


def similarities(left: Tensor, right: Tensor, *, kind: Literal["dot", "cosine"]) -> Tensor:
    """Dot product or cosine of each pair of rows, `(N,)` from two of `(N, D)`; a zero vector is like nothing, 0.

    >>> similarities(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]]), kind="dot")
    tensor([9.])
    """
    if kind == "cosine":
        left, right = nn.functional.normalize(left, dim=1), nn.functional.normalize(right, dim=1)
    return (left * right).sum(1)


def places(texts: list[str], among: list[str]) -> list[int]:
    """Where each text stands among others.

    >>> places(["b", "a", "b"], ["a", "b"])
    [1, 0, 1]
    """
    place = {text: i for i, text in enumerate(among)}
    return [place[text] for text in texts]


def mean_to_others(targets: list[str], vectors: Tensor, answers: Tensor, *, kind: Literal["dot", "cosine"]) -> Tensor:
    """Each answer's mean similarity to the targets of other rows that differ from its own, `(N,)`; 0 without any.

    A target whose vector is not finite spoils its own row alone.

    Args:
        targets: N texts, of which equal ones count once.
        vectors: Theirs, `(N, D)`.
        answers: The completions' vectors, `(N, D)`.
        kind: As in `similarities`.
    """
    finite = vectors.isfinite().all(1)
    first = {target: i for i, target in reversed(list(enumerate(targets))) if finite[i]}
    table = [similarities(vectors[i].expand_as(answers), answers, kind=kind) for i in first.values()]
    own = torch.where(finite, similarities(vectors, answers, kind=kind), 0.0)
    return (sum(table, torch.zeros_like(own)) - own) / (len(first) - finite.int()).clamp(min=1)
