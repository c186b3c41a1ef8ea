"""TRL's fused vocabulary head beside logits that are held: time and memory of log-probabilities and entropy, both ways.

    python -m examples.benchmarks.memory.card_head                # on a GPU: 2048 positions of width 4096 in bf16
    python -m examples.benchmarks.memory.card_head --device cpu   # a smoke test

The weight is frozen, as under an adapter. Each runs forward and backward in turns, the median of the repeats; the peak is
what is allocated above weight and states.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils

from examples.benchmarks.common.live_bytes import LiveBytes
from examples.benchmarks.memory.card_rows import Row

WORDS = {"cuda": (32_000, 152_064), "cpu": (500,)}
SIZES = {"cuda": (2048, 4096, torch.bfloat16), "cpu": (64, 64, torch.float32)}  # positions, width, dtype
Head = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(WORDS), default="cuda")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = [row for words in WORDS[args.device] for row in rows_of(words, args.device, args.repeats)]
    for row in rows:
        print(*row.values(), sep=" | ")
    if args.json:
        args.json.write_text(json.dumps(rows))


def rows_of(words: int, device: str, repeats: int) -> list[Row]:
    """Milliseconds and MiB of both heads for a vocabulary, and how far the fused one's numbers are from the other's."""
    inputs = inputs_of(words, device)
    heads: dict[str, Head] = {"fused": fused, "plain": plain}
    turns = [{name: seconds(head, inputs) for name, head in heads.items()} for _ in range(1 + repeats)][1:]
    took = {name: statistics.median(turn[name] for turn in turns) * 1e3 for name in heads}
    peaks = {name: peak_bytes(head, inputs) / 2**20 for name, head in heads.items()}
    apart = (fused(*inputs)[0] - plain(*inputs)[0]).abs().max().item()
    what = f"TRL's head, {words:,} words"
    return [
        Row(f"{what}, ms", f"{took['fused']:.2f}", f"plain logits {took['plain']:.2f}", ratio(took)),
        Row(f"{what}, MiB", f"{peaks['fused']:.0f}", f"plain logits {peaks['plain']:.0f}", ratio(peaks)),
        Row(f"{what}, largest difference in log p", f"{apart:.1e}"),
    ]


def ratio(numbers: dict[str, float]) -> str:
    return f"{numbers['fused'] / numbers['plain']:.2f} ×"


def inputs_of(words: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """States with gradient, a frozen weight, and targets."""
    positions, width, dtype = SIZES[device]
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(positions, width, generator=generator, device=device, dtype=dtype)
    weight = torch.randn(words, width, generator=generator, device=device, dtype=dtype).mul_(width**-0.5)
    return hidden.requires_grad_(), weight, torch.randint(words, (positions,), generator=generator, device=device)


def fused(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p and entropy by TRL's function, in the tiles that TRL takes on a card."""
    tile = utils._CHUNKED_LOGPROB_CHUNK_SIZE
    outputs = ChunkedLogProbFunction.apply(
        hidden, weight, None, targets, 1.0, tile, None, 1.0, ("log_probs", "entropy")
    )
    return outputs[0], outputs[1]


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same from logits that are held, in float32 as TRL had them."""
    log_probs = (hidden @ weight.T).float().log_softmax(-1)
    return log_probs.gather(1, targets.unsqueeze(1)).squeeze(1), -(log_probs.exp() * log_probs).sum(-1)


def run(head: Head, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    log_probs, _ = head(*inputs)
    log_probs.sum().backward()
    inputs[0].grad = None


def seconds(head: Head, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    start = now(inputs[0].device)
    run(head, inputs)
    return now(inputs[0].device) - start


def now(device: torch.device) -> float:
    """By the clock, once the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(head: Head, inputs: tuple[Tensor, Tensor, Tensor]) -> int:
    if inputs[0].device.type == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(head, inputs)
        return torch.cuda.max_memory_allocated() - held
    with LiveBytes() as live:
        run(head, inputs)
    return live.peak


if __name__ == "__main__":
    main()
