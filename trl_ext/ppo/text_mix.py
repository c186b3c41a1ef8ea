"""Ordinary text that PPO's loss is mixed with, so that the policy does not forget how to write (InstructGPT's PPO-ptx)."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from trl_ext.ppo.ppo_config import PPOConfig
from trl_ext.sequences.log_probs import label_log_probs
from trl_ext.sequences.prompt_rows import check_completions, check_prompts, one_split
from trl_ext.sequences.template_check import check_has_template
from trl_ext.sequences.texts import Text
from trl_ext.sequences.token_ids import TemplateKwargs, message_ids, prompt_and_completion_ids, row_template_kwargs
from trl_ext.sequences.training_rows import IGNORED, TrainingRow, collate, training_row
from trl_ext.sequences.vocabulary import check_ids

CALL = "PPOTrainer(ptx_dataset=…)"


class TextMix:
    """Batches of text by their number, in an order that a seed fixes, so that a resumed run reads on where it was.

    Args:
        dataset: Rows with `text`, or with `prompt` and `completion` (text or messages), whose completion alone is
            learned, or with `messages`.
        tokenizer: The policy's.
        max_length: Longest row in tokens; a longer one is cut at its end.
        batch_size: Rows per batch.
        seed: Of the order, which is another in each pass over the rows.
        template_kwargs: For the chat template; a row's own columns `chat_template_kwargs` and `tools` go before them.

    Raises:
        ValueError: If there is nothing to learn from.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        batch_size: int,
        seed: int,
        template_kwargs: TemplateKwargs = None,
    ):
        one_split(dataset, call=CALL)
        if not isinstance(dataset, Dataset) or not len(dataset):
            raise ValueError(
                f"{CALL}: expected a datasets.Dataset with rows, got {type(dataset).__name__}"
                f"{' without any' if isinstance(dataset, Dataset) else ''}. A stream or list becomes one with "
                "Dataset.from_list(list(rows))."
            )
        rows = (tokenised_row(row, tokenizer, template_kwargs, number=number) for number, row in enumerate(dataset))
        rows = [{name: values[:max_length] for name, values in row.items()} for row in rows]
        self.rows = [row for row in rows if learned_tokens(row)]
        if not self.rows:
            raise ValueError(
                f"{CALL}: no row has a token to learn within ptx_max_length={max_length}. Raise it, or give rows with text."
            )
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self._pad_token_id = tokenizer.pad_token_id

    def batch(self, number: int) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels` of a batch, `(B, L)` each."""
        return collate(self._rows_of(number), pad_token_id=self._pad_token_id)

    def tokens(self, number: int) -> int:
        """Tokens that a batch is learned from."""
        return sum(learned_tokens(row) for row in self._rows_of(number))

    def loss(
        self, model: nn.Module, step: int, *, micro_batches: int, accelerator: Accelerator
    ) -> tuple[Tensor, float]:
        """A micro-batch's share of Σ NLL / number of tokens over the accumulation window and all processes, and its mean.

        Gradients are summed over micro-batches (GRPOTrainer sees to that) and averaged over processes, which is undone here.

        Args:
            model: The policy, as the trainer wraps it.
            step: Micro-batches of this process so far.
            micro_batches: Those of an accumulation window.
            accelerator: The trainer's.
        """
        processes, device = accelerator.num_processes, accelerator.device
        first = (step - step % micro_batches) * processes
        tokens = sum(self.tokens(number) for number in range(first, first + micro_batches * processes))
        batch = self.batch(step * processes + accelerator.process_index)
        nll = -label_log_probs(model, {name: tensor.to(device) for name, tensor in batch.items()}).sum()
        mean = accelerator.reduce(nll.detach(), reduction="sum").item() * micro_batches / tokens
        return nll * processes / tokens, mean

    def row_losses(
        self, model: nn.Module, step: int, accelerator: Accelerator
    ) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Each row of what `loss` reads at a step, alone, and its Σ NLL."""
        for row in self._rows_of(step * accelerator.num_processes + accelerator.process_index):
            batch = collate([row], pad_token_id=self._pad_token_id)
            batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
            yield batch, -label_log_probs(model, batch).sum()

    def _rows_of(self, number: int) -> list[TrainingRow]:
        places = range(number * self.batch_size, (number + 1) * self.batch_size)
        return [self.rows[self._order(place // len(self.rows))[place % len(self.rows)]] for place in places]

    @functools.lru_cache(maxsize=2)  # noqa: B019 - lives as long as the trainer
    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        return torch.randperm(len(self.rows), generator=generator).tolist()


def text_mix(
    dataset: Dataset | None, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, args: PPOConfig
) -> TextMix | None:
    """What `PPOTrainer(ptx_dataset=…)` makes of it, for the model of a config; None of None."""
    if dataset is None:
        return None
    size = args.per_device_train_batch_size
    mix = TextMix(
        dataset,
        tokenizer,
        max_length=args.ptx_max_length,
        batch_size=size,
        seed=args.seed,
        template_kwargs=args.chat_template_kwargs,
    )
    check_ids((row["input_ids"] for row in mix.rows), tokenizer, config, call=CALL)
    return mix


def learned_tokens(row: TrainingRow) -> int:
    """Tokens with a label, but for the first, which nothing stands before."""
    return sum(label != IGNORED for label in row["labels"][1:])


def tokenised_row(
    row: dict, tokenizer: PreTrainedTokenizerBase, template_kwargs: TemplateKwargs = None, *, number: int = 0
) -> TrainingRow:
    """A row as tokens, ended; what is learned begins behind the prompt, or behind the BOS.

    Args:
        row: Of the data set; what it asks of the chat template goes before `template_kwargs`.
        tokenizer: The policy's.
        template_kwargs: For the chat template, of all rows.
        number: The row's, for an error.
    """
    template_kwargs = {**(template_kwargs or {}), **row_template_kwargs(row)}
    if row.get("messages") is not None:
        _check_messages(row["messages"], number)
        check_has_template([row["messages"]], tokenizer, call=CALL)
        ids = message_ids(row["messages"], tokenizer, template_kwargs)
        begun = int(ids[:1] == [tokenizer.bos_token_id])
        return training_row(ids[:begun], ids[begun:])
    prompt, completion = _pair(row, number)
    check_has_template([prompt], tokenizer, call=CALL)
    return training_row(*prompt_and_completion_ids(prompt, completion, tokenizer, template_kwargs))


def _pair(row: dict, number: int) -> tuple[Text, Text]:
    """Prompt and completion of a row; of text, whose place is empty in rows that have both, nothing stands before it."""
    if isinstance(row.get("text"), str):
        return "", row["text"]
    if {"prompt", "completion"} <= set(row):
        check_prompts([row["prompt"]], call=CALL, rows=[number], may_be_empty=True)
        check_completions([row["prompt"]], [row["completion"]], call=CALL, rows=[number])
        return row["prompt"], row["completion"]
    if "text" in row:
        raise ValueError(
            f"{CALL}: the `text` of row {number} is {row['text']!r:.120}: expected text. Drop such rows with "
            "`dataset.filter`; messages go into a column `messages`."
        )
    raise ValueError(
        f"{CALL} has columns {sorted(row)}: expected `text`, or `prompt` and `completion`, or `messages`. Rename yours."
    )


def _check_messages(messages: Any, number: int) -> None:
    check_prompts([messages], call=CALL, column="messages", rows=[number], may_be_empty=True)
    if isinstance(messages, str):
        raise ValueError(f"{CALL}: the `messages` of row {number} is text. Rename the column `text`.")
