"""What a reward model's step costs where LoRA is on the upper third of the layers only: CPU seconds and peak memory.

    python -m examples.benchmarks.speed.upper_layers MODEL

Primary endpoint: CPU seconds of loss and gradients beside LoRA on all layers, median of the ratios over the turns, in each of
which every row is built anew and has run, with one thread. The peak is that of live tensors over a whole step, weights left
out. Rows with checkpointing have `gradient_checkpointing=True`, TRL's default, for which TRL lets the embeddings' output
require gradients: then the backward pass goes through the frozen layers, too.
"""

import argparse
import gc
import statistics
import tempfile
import time

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, TaskType
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from examples.benchmarks.common.live_bytes import LiveBytes
from trl_ext import ImitationRewardConfig, ImitationRewardTrainer
from trl_ext.trainer_kit.trl_versions import recompute_activations

ROWS = {  # whether upper layers only, and whether activations are checkpointed
    "all layers": (False, False),
    "upper third": (True, False),
    "all layers, checkpointing": (False, True),
    "upper third, checkpointing": (True, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="A decoder: its path.")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument(
        "--tokens", type=int, default=64, help="Of a completion behind its prompt, of which half is the prompt."
    )
    parser.add_argument("--imitation", type=float, default=0.0, help="imitation_coef.")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    seconds: dict[str, list[float]] = {row: [] for row in ROWS}
    peaks: dict[str, int] = {}
    for turn in range(args.turns):
        for row in ROWS:
            gc.collect()  # the trainer before
            begun = time.monotonic()
            spent, peaks[row] = measured(row, args)
            seconds[row].append(spent)
            print(
                f"turn {turn}, {row}: {spent:.2f} s, {peaks[row] / 2**20:.0f} MiB ({time.monotonic() - begun:.0f} s in all)"
            )
    table = Table("LoRA on", "CPU seconds", "× all layers", "peak, MiB", "× all layers")
    first = next(iter(ROWS))
    for row in ROWS:
        ratio = statistics.median(a / b for a, b in zip(seconds[row], seconds[first], strict=True))
        table.add_row(
            row,
            f"{statistics.median(seconds[row]):.2f}",
            f"{ratio:.2f}",
            f"{peaks[row] / 2**20:.0f}",
            f"{peaks[row] / peaks[first]:.2f}",
        )
    Console(width=110).print(table)


def measured(row: str, args: argparse.Namespace) -> tuple[float, int]:
    """CPU seconds of the faster of two steps, and the peak bytes of a third."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(row, args, folder)
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    step(trainer, batch)
    spent = min(step(trainer, batch) for _ in range(2))
    with LiveBytes(trainer.model) as live:
        live.watch(tensor for state in trainer.optimizer.state.values() for tensor in state.values())
        step(trainer, batch)
    return spent, live.peak


def trainer_of(row: str, args: argparse.Namespace, folder: str) -> ImitationRewardTrainer:
    upper, checkpointing = ROWS[row]
    layers = AutoConfig.from_pretrained(args.model).get_text_config().num_hidden_layers
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=16,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(layers - layers // 3, layers)) if upper else None,
    )
    options = ImitationRewardConfig(
        folder,
        imitation_coef=args.imitation,
        gradient_checkpointing=checkpointing,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    trainer = ImitationRewardTrainer(args.model, options, train_dataset=pairs(args), peft_config=lora)
    trainer.model.train()
    if checkpointing:  # as `train` would
        recompute_activations(trainer.model.get_base_model())
    trainer.create_optimizer()
    return trainer


def pairs(args: argparse.Namespace) -> Dataset:
    made = torch.Generator().manual_seed(0)
    prompts = torch.randint(1000, 9000, (args.pairs, args.tokens // 2), generator=made).tolist()
    columns = {}
    for side in ("chosen_ids", "rejected_ids"):
        ends = torch.randint(1000, 9000, (args.pairs, args.tokens - args.tokens // 2), generator=made).tolist()
        columns[side] = [prompt + end for prompt, end in zip(prompts, ends, strict=True)]
    return Dataset.from_dict(columns)


def step(trainer: ImitationRewardTrainer, batch: dict[str, torch.Tensor]) -> float:
    """CPU seconds of loss and gradients."""
    begun = time.process_time()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    spent = time.process_time() - begun
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return spent


if __name__ == "__main__":
    main()
