"""What do whole weights cost while RAFT samples under FSDP2? Resident memory of one of two processes, at its Grows.

    python -m examples.benchmarks.scale.whole_weights --model 100m

launches itself by `accelerate launch --config_file examples/accelerate/fsdp2.yaml` on CPU processes (gloo), and prints MiB of
the process's own memory (RssAnon) before a Grow, while it has the weights, and behind it, and the seconds that gathering took.
"""

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM

from examples.benchmarks.common.made_models import SHAPES, config_of, word_tokenizer
from examples.benchmarks.common.quiet_runs import quiet
from examples.benchmarks.scale.cpu_processes import ROOT, launch_command, leave, take_for_cards
from examples.benchmarks.scale.rows import GIVEN_BACK, memory
from examples.benchmarks.scale.table_stages import even_words
from trl_ext import RAFTConfig, RAFTTrainer
from trl_ext.trainer_kit.whole_copies import WholeCopy

MIB = 2**20
PATIENCE = 900  # seconds that the launch may take
FIELDS = ("weights", "before", "while whole", "behind", "gathered in, s")


def watch() -> list[dict[str, float]]:
    """Fills with what each Grow takes."""
    seen, filled = [], WholeCopy.filled

    @contextmanager
    def watched(copy: WholeCopy) -> Iterator[nn.Module]:
        found, start = {"before": memory("RssAnon") / MIB}, time.perf_counter()
        with filled(copy) as model:
            found |= {"gathered in, s": time.perf_counter() - start, "while whole": memory("RssAnon") / MIB}
            found["weights"] = sum(p.numel() * p.element_size() for p in model.parameters()) / MIB
            yield model
        seen.append(found | {"behind": memory("RssAnon") / MIB})

    WholeCopy.filled = watched
    return seen


def worker(shape: str, folder: str) -> None:
    quiet()
    take_for_cards()
    seen, config = watch(), config_of(shape, window=64)
    plain = {"bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False, "disable_tqdm": True}
    small = {"num_generations": 2, "max_completion_length": 4, "improve_steps": 1, "per_device_train_batch_size": 1}
    left = {
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "num_stages": 3,
        "drop_truncated": False,
    }
    RAFTTrainer(
        AutoModelForCausalLM.from_config(config),
        even_words,
        RAFTConfig(folder, **plain, **small, **left),
        Dataset.from_dict({"prompt": ["w4 w5", "w6 w7"]}),
        processing_class=word_tokenizer(config.vocab_size),
    ).train()
    if torch.distributed.get_rank() == 0:
        print(f"\n| Grow | {' | '.join(FIELDS)} |\n|{'---|' * (1 + len(FIELDS))}")
        for stage, found in enumerate(seen, start=1):
            print(
                f"| {stage} | {' | '.join(f'{found[name]:,.0f}' for name in FIELDS[:-1])} | {found[FIELDS[-1]]:.1f} |"
            )
    leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", choices=SHAPES, default="100m")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return worker(given.model, given.worker)
    launch = launch_command("fsdp2", "examples.benchmarks.scale.whole_weights")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [*launch, "--model", given.model, "--worker", folder],
            env=os.environ | {"ACCELERATE_TORCH_DEVICE": "cpu", "OMP_NUM_THREADS": "1"} | GIVEN_BACK,
            cwd=ROOT,
            check=True,
            timeout=PATIENCE,
        )


if __name__ == "__main__":
    main()
