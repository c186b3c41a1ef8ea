"""A reward model over pairs that stand in a table, for `equal_to_one`."""

from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer

HEADS = {"reward": "reward model", "tied reward": "reward model, head tied"}
NUMBERS = ("eval_loss", "eval_ranking_loss", "eval_imitation_loss", "eval_accuracy", "eval_margin")
CUTTING = ("fsdp2", "zero3")  # the engines under which the head cannot be the embedding


def pairs(table: dict[str, list[int]], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Each prompt with its completion, which is preferred to the one of the prompt behind it."""
    prompts = {prompt: tokenizer(prompt)["input_ids"] for prompt in table}
    others = [*table.values()][1:] + [*table.values()][:1]
    rows = [
        {"chosen_ids": ids + table[prompt], "rejected_ids": ids + other, "num_prompt_tokens": len(ids)}
        for (prompt, ids), other in zip(prompts.items(), others, strict=True)
    ]
    return Dataset.from_list(rows)


def pair_trainer(
    head: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    table: dict[str, list[int]],
    *,
    steps: int,
    **options: Any,
) -> ImitationRewardTrainer:
    """A trainer of a few steps, whose evaluations are batched alike, whatever the number of processes.

    Args:
        head: Of `HEADS`.
        options: Of its config.
    """
    data = pairs(table, tokenizer)
    own = None
    if head == "reward":
        torch.manual_seed(2)
        vocabulary, width = model.get_input_embeddings().weight.shape
        own = nn.Linear(width, vocabulary, bias=False, dtype=torch.float64)
    told = {"max_steps": steps, "learning_rate": 1e-3, "imitation_coef": 0.5, "max_length": 64}
    args = ImitationRewardConfig(**options | told | {"per_device_eval_batch_size": 4})
    return ImitationRewardTrainer(
        model, args, train_dataset=data, eval_dataset=data, processing_class=tokenizer, imitation_head=own
    )
