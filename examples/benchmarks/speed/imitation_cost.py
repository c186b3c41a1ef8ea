"""What the imitation term costs at three sizes of the vocabulary: seconds and peak memory of a training step.

    python -m examples.benchmarks.speed.imitation_cost
    python -m examples.benchmarks.speed.imitation_cost --device cuda  # a wider model, in bf16

Three rows a vocabulary, in turns in one process with one thread: the step of 12 pairs without imitation, with it, and with
cross-entropy of logits that are held, those of the labels only. The seconds are the process's own, or a card's by the clock,
of loss and gradients, the median of the repeats; the peak is that of live tensors over the whole step, or of what is
allocated on the card, AdamW included, weights left out.

What FLOPs ask beside a step without imitation, with P parameters of the trunk's layers and a head of V × H:

    1 + 4 V H / 6 P · labels / tokens

as the head is frozen: a product for the logits and one for the states' gradient, where the trunk has three.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from datasets import Dataset, disable_progress_bars
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from transformers import LlamaConfig, LlamaForSequenceClassification

from examples.benchmarks.common.live_bytes import LiveBytes
from examples.benchmarks.common.made_models import EOS, FIRST_WORD, PAD, word_tokenizer
from trl_ext import ImitationRewardConfig, ImitationRewardTrainer
from trl_ext.reward_modeling import imitation_reward_trainer
from trl_ext.reward_modeling.preference_data import PROMPT_TOKENS
from trl_ext.shared_base.shared_tree import storage_bytes

WORDS = (500, 32_000, 262_144)
WITHOUT, OURS, PLAIN = "without imitation", "with imitation", "with whole logits"


@dataclass(frozen=True)
class Work:
    """A model and the pairs of a step.

    Args:
        hidden, layers: Of the model.
        prompt, completion: In tokens.
        device: Where it is done; on a card in bf16.
    """

    hidden: int
    layers: int
    prompt: int
    completion: int
    pairs: int = 12
    device: str = "cpu"


WORK = {"cpu": Work(256, 12, 64, 64), "cuda": Work(1024, 12, 256, 256, device="cuda")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, nargs="+", default=WORDS, help="Sizes of the vocabulary.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=list(WORK), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Where the rows go as well, after each vocabulary.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    table = Table("words", "row", "seconds", "× without", "FLOPs ask", "× whole logits", "peak, MiB", "× without")
    found: list[list[str]] = []
    for words in args.words:
        rows = rows_of(words, args.repeats, WORK[args.device])
        found += rows
        for row in rows:
            table.add_row(*row)
        table.add_section()
        if args.json:
            args.json.write_text(json.dumps(found))
    Console(width=110).print(table)


def rows_of(words: int, repeats: int, work: Work) -> list[list[str]]:
    """The table's lines for a vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(words, folder, work)
    seconds, peaks = measured(trainer, repeats)
    asked = {WITHOUT: 1.0, OURS: flops_ratio(trainer), PLAIN: flops_ratio(trainer)}
    return [
        [
            f"{words:,}",
            row,
            f"{statistics.median(seconds[row]):.3f}",
            ratio(seconds[row], seconds[WITHOUT]),
            f"{asked[row]:.2f}",
            ratio(seconds[row], seconds[PLAIN]),
            f"{peaks[row] / 2**20:.0f}",
            f"{peaks[row] / peaks[WITHOUT]:.2f}",
        ]
        for row in (WITHOUT, OURS, PLAIN)
    ]


def ratio(these: list[float], those: list[float]) -> str:
    """The median over the turns, in each of which both have run."""
    return f"{statistics.median(a / b for a, b in zip(these, those, strict=True)):.2f}"


def flops_ratio(trainer: ImitationRewardTrainer) -> float:
    """What FLOPs ask of a step with imitation, where one without is 1; the scores of attention are left out."""
    trunk = sum(weight.numel() for weight in trainer.model.model.layers.parameters())
    head = trainer._head.weight.numel()
    row = trainer.train_dataset[0]
    tokens = len(row["chosen_ids"])
    return 1 + (4 * head * (tokens - row[PROMPT_TOKENS])) / (6 * trunk * 2 * tokens)


def trainer_of(words: int, folder: str, work: Work) -> ImitationRewardTrainer:
    """Of a random Llama whose head is its embedding."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=work.hidden,
        intermediate_size=4 * work.hidden,
        num_hidden_layers=work.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=PAD,
        eos_token_id=EOS,
        num_labels=1,
        tie_word_embeddings=True,
    )
    args = ImitationRewardConfig(
        folder,
        use_cpu=work.device == "cpu",
        bf16=work.device != "cpu",
        report_to="none",
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    dtype = torch.float32 if work.device == "cpu" else torch.bfloat16
    model, tokenizer = LlamaForSequenceClassification(config).to(dtype), word_tokenizer(words)
    trainer = ImitationRewardTrainer(model, args, train_dataset=pairs(words, work), processing_class=tokenizer)
    trainer.model = trainer.accelerator.prepare(trainer.model)  # which brings autocast to a card, as in a run
    trainer.create_optimizer()
    return trainer


def pairs(words: int, work: Work) -> Dataset:
    source = random.Random(0)

    def ids(count: int) -> list[int]:
        return [source.randrange(FIRST_WORD, words) for _ in range(count)]

    prompts = [ids(work.prompt) for _ in range(work.pairs)]
    columns = {name: [prompt + ids(work.completion) for prompt in prompts] for name in ("chosen_ids", "rejected_ids")}
    return Dataset.from_dict(columns | {PROMPT_TOKENS: [work.prompt] * work.pairs})


def measured(trainer: ImitationRewardTrainer, repeats: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each turn, after one to warm up, and peak bytes, by row."""
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    seconds: dict[str, list[float]] = {WITHOUT: [], OURS: [], PLAIN: []}
    peaks = {}
    for turn in range(1 + repeats):
        for row, found in seconds.items():
            with kind_of_step(trainer, batch, row) as inputs:
                spent = step(trainer, inputs)
                if turn:
                    found.append(spent)
                else:
                    peaks[row] = peak_bytes(trainer, inputs)
    return seconds, peaks


@contextmanager
def kind_of_step(trainer: ImitationRewardTrainer, batch: dict[str, Tensor], row: str) -> Iterator[dict[str, Tensor]]:
    """What a step of that row reads; inside the block the trainer takes such steps."""
    if row == WITHOUT:
        with patch.object(trainer.args, "imitation_coef", 0.0):
            yield {name: value for name, value in batch.items() if name != PROMPT_TOKENS}
    elif row == PLAIN:
        with patch.object(imitation_reward_trainer, "completion_nll", whole_nll):
            yield dict(batch)
    else:
        yield dict(batch)


def whole_nll(hidden_states: Tensor, input_ids: Tensor, targets: Tensor, head) -> Tensor:
    """`completion_nll` with all logits of the labels at once."""
    predicted = targets[:, 1:]
    weight, _ = head.on(hidden_states.device)
    logits = linear(hidden_states[:, :-1][predicted], weight)
    return cross_entropy(logits, input_ids[:, 1:][predicted], reduction="none")


def step(trainer: ImitationRewardTrainer, inputs: dict[str, Tensor]) -> float:
    """Seconds of loss and gradients; the optimiser's, which no row changes, are left out."""
    start = now(trainer)
    trainer.compute_loss(trainer.model, inputs).backward()
    spent = now(trainer) - start
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return spent


def now(trainer: ImitationRewardTrainer) -> float:
    """Seconds: of this process on a CPU, else by the clock, once the card has done all that it was asked."""
    if trainer.args.device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(trainer: ImitationRewardTrainer, inputs: dict[str, Tensor]) -> int:
    """Of a step that has its moments already."""
    if trainer.args.device.type != "cpu":
        torch.cuda.reset_peak_memory_stats()
        step(trainer, inputs)
        return torch.cuda.max_memory_allocated() - storage_bytes(trainer.model)
    with LiveBytes(trainer.model) as live:
        live.watch(value for state in trainer.optimizer.state.values() for value in state.values())
        step(trainer, inputs)
    return live.peak


if __name__ == "__main__":
    main()
