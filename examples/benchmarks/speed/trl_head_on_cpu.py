"""TRL's fused vocabulary head on a CPU: seconds forward and backward, by the width of its tiles, beside plain logits.

    python -m examples.benchmarks.speed.trl_head_on_cpu

The least of three runs each, in turns; a hidden size of 320 and 32 000 words, as in the 20M model of
`ppo_vs_trl_1_12.py`, and as many positions as 32 prompts of 16 tokens have with 64 new ones.
"""

import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

POSITIONS, HIDDEN, WORDS = 2560, 320, 32_000
TILES = (32_768, 8192, 2048, 512)  # words; the first is TRL's


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log p of the targets from logits that are held."""
    logits = hidden @ weight.T
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)


def fused(tile: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The same by TRL's function, as GRPO calls it."""

    def head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, tile, None, 1.0, ("log_probs", "entropy")
        )[0]

    return head


def seconds(head: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """Of one forward and one backward pass, the weight frozen as under an adapter."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, HIDDEN, generator=generator).requires_grad_()
    weight = 0.02 * torch.randn(WORDS, HIDDEN, generator=generator)
    targets = torch.randint(WORDS, (POSITIONS,), generator=generator)
    start = time.perf_counter()
    log_probs = head(hidden, weight, targets)
    middle = time.perf_counter()
    log_probs.sum().backward()
    return middle - start, time.perf_counter() - middle


def main() -> None:
    heads = {"plain logits": plain} | {f"fused, tiles of {tile} words": fused(tile) for tile in TILES}
    runs = [{name: seconds(head) for name, head in heads.items()} for _ in range(3)]
    least = {name: [min(values) for values in zip(*(run[name] for run in runs), strict=True)] for name in heads}
    base = sum(least[f"fused, tiles of {TILES[0]} words"])
    table = Table("", "forward, s", "backward, s", "× TRL's speed", title=f"{POSITIONS} positions, {WORDS} words")
    for name, (forward, backward) in least.items():
        table.add_row(name, f"{forward:.2f}", f"{backward:.2f}", f"{base / (forward + backward):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
