"""What the imitation term costs at three sizes of the vocabulary: CPU seconds and peak memory of a training step.

    python -m examples.benchmarks.speed.imitation_cost

Three rows a vocabulary, in turns in one process with one thread: the step of 12 pairs without imitation, with it, and with
cross-entropy of logits that are held, those of the labels only. The seconds are the process's own, of loss and gradients,
the median of the repeats; the peak is that of live tensors over the whole step, AdamW included, weights left out.

What FLOPs ask beside a step without imitation, with P parameters of the trunk's layers and a head of V × H:

    1 + 4 V H / 6 P · labels / tokens

as the head is frozen: a product for the logits and one for the states' gradient, where the trunk has three.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

WORDS = (500, 32_000, 262_144)
HIDDEN, LAYERS = 256, 12
PAIRS, PROMPT, COMPLETION = 12, 64, 64  # tokens each
WITHOUT, OURS, PLAIN = "without imitation", "with imitation", "with whole logits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, nargs="+", default=WORDS, help="Sizes of the vocabulary.")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    table = Table("words", "row", "CPU s", "× without", "FLOPs ask", "× whole logits", "peak, MiB", "× without")
    for words in args.words:
        for row in rows_of(words, args.repeats):
            table.add_row(*row)
        table.add_section()
    Console(width=110).print(table)


def rows_of(words: int, repeats: int) -> list[list[str]]:
    """The table's lines for a vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(words, folder)
    seconds, peaks = measured(trainer, repeats)
    asked = {WITHOUT: 1.0, OURS: flops_ratio(trainer), PLAIN: flops_ratio(trainer)}
    return [
        [
            f"{words:,}",
            row,
            f"{statistics.median(seconds[row]):.2f}",
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
    return 1 + (4 * head * COMPLETION) / (6 * trunk * 2 * (PROMPT + COMPLETION))


def trainer_of(words: int, folder: str) -> ImitationRewardTrainer:
    """Of a random Llama whose head is its embedding."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=PAD,
        eos_token_id=EOS,
        num_labels=1,
        tie_word_embeddings=True,
    )
    args = ImitationRewardConfig(
        folder, use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False, disable_tqdm=True
    )
    model, tokenizer = LlamaForSequenceClassification(config), word_tokenizer(words)
    trainer = ImitationRewardTrainer(model, args, train_dataset=pairs(words), processing_class=tokenizer)
    trainer.create_optimizer()
    return trainer


def pairs(words: int) -> Dataset:
    source = random.Random(0)

    def ids(count: int) -> list[int]:
        return [source.randrange(FIRST_WORD, words) for _ in range(count)]

    prompts = [ids(PROMPT) for _ in range(PAIRS)]
    columns = {name: [prompt + ids(COMPLETION) for prompt in prompts] for name in ("chosen_ids", "rejected_ids")}
    return Dataset.from_dict(columns | {PROMPT_TOKENS: [PROMPT] * PAIRS})


def measured(trainer: ImitationRewardTrainer, repeats: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each turn, after one to warm up, and peak bytes, by row."""
    batch = trainer.data_collator(list(trainer.train_dataset))
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
    """CPU seconds of loss and gradients; the optimiser's, which no row changes, are left out."""
    start = time.process_time()
    trainer.compute_loss(trainer.model, inputs).backward()
    spent = time.process_time() - start
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return spent


def peak_bytes(trainer: ImitationRewardTrainer, inputs: dict[str, Tensor]) -> int:
    """Of a step that has its moments already."""
    with LiveBytes(trainer.model) as live:
        live.watch(value for state in trainer.optimizer.state.values() for value in state.values())
        step(trainer, inputs)
    return live.peak


if __name__ == "__main__":
    main()
