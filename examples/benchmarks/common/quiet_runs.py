"""How the benchmarks' runs are set up."""

from pathlib import Path

import datasets
import torch
import transformers


def on_cpu(folder: Path, seed: int) -> dict:
    """Training arguments of a run on the CPU that leaves nothing but its results."""
    return {
        "output_dir": str(folder),
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "seed": seed,
    }


def quiet() -> None:
    """One thread, so that CPU seconds are the run's own, and no progress bars."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
