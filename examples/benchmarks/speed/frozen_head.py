"""Reading prompts for their last position's logits, with a frozen vocabulary head on a CPU: as one matrix, and as torch takes a slice.

    python -m examples.benchmarks.speed.frozen_head
    python -m examples.benchmarks.speed.frozen_head --words 32000 --batch 16

A random Llama of two layers of width 640 under LoRA reads a batch of prompts of 64 tokens, which is how sampling begins. CPU
seconds of one thread, the median of runs in turns; memory is the process's peak above what it held before the pass.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from trl_ext.trainer_kit.passes import states_as_one_matrix

WIDTH, LAYERS, PROMPT = 640, 2, 64
ARMS = {"a slice, as torch takes it": lambda model: nullcontext(), "one matrix": states_as_one_matrix}


def policy(words: int, dtype: torch.dtype) -> nn.Module:
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 10,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=words, num_key_value_heads=2, **sizes)).to(dtype)
    return get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).eval()


def status(name: str) -> float:
    """A line of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


@contextmanager
def measured(seconds: list[float], peaks: list[float]) -> Iterator[None]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = status("VmRSS"), time.process_time()
    yield
    seconds.append(time.process_time() - began)
    peaks.append(status("VmHWM") - before)


@torch.no_grad()
def read(model: nn.Module, ids: torch.Tensor, block: AbstractContextManager) -> None:
    with block:
        model(input_ids=ids, logits_to_keep=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, nargs="+", default=[32_000, 262_144])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| words | dtype | | CPU s | ratio | peak, MiB |\n|---|---|---|---|---|---|")
    for words in args.words:
        for dtype in (torch.bfloat16, torch.float32):
            model, ids = policy(words, dtype), torch.randint(words, (args.batch, PROMPT))
            read(model, ids, states_as_one_matrix(model))  # warms up
            found = {name: ([], []) for name in ARMS}
            for _ in range(args.repeats):
                for name, block in ARMS.items():
                    with measured(*found[name]):
                        read(model, ids, block(model))
            seconds = {name: statistics.median(times) for name, (times, _) in found.items()}
            for name, (_, peaks) in found.items():
                ratio = seconds[name] / seconds["one matrix"]
                print(
                    f"| {words:,} | {str(dtype)[6:]} | {name} | {seconds[name]:.3f} | {ratio:.1f} | {max(peaks):.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
