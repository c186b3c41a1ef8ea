"""Reward models for `imitation`: trained, scored and read, above frozen lower layers whose states are computed once."""

import copy
from collections.abc import Iterable
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PrinterCallback

from examples.benchmarks.common.quiet_runs import on_cpu
from trl_ext import ImitationRewardConfig, ImitationRewardTrainer
from trl_ext.reward_modeling.imitation_loss import completion_nll, completion_targets
from trl_ext.reward_modeling.vocabulary_head import vocabulary_head
from trl_ext.sequences.preference_rows import PROMPT_TOKENS
from trl_ext.trainer_kit.passes import eval_mode, seen_in, under_adapter

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"r": 16, "lora_alpha": 32, "target_modules": LINEAR, "task_type": TaskType.SEQ_CLS}
BATCH = 8  # pairs of a step
READ = 16  # sequences at a time


class StoredStates(nn.Module):
    """In the place of an embedding: what frozen lower layers made of sequences that were read before, `(B, T, H)`.

    Args:
        embedding: The model's, whose weight a tied vocabulary head reads.
        pad: Token behind the end of shorter sequences.
    """

    def __init__(self, embedding: nn.Embedding, pad: int):
        super().__init__()
        self.weight, self.pad = embedding.weight, pad
        self.num_embeddings, self.embedding_dim = embedding.weight.shape
        self.states: dict[tuple[int, ...], Tensor] = {}

    def __deepcopy__(self, memo: dict) -> "StoredStates":
        return self  # nothing here is trained

    def key(self, ids: Iterable[int]) -> tuple[int, ...]:
        ids = list(ids)
        while ids[-1] == self.pad:
            ids.pop()
        return tuple(ids)

    def forward(self, ids: Tensor) -> Tensor:
        rows = [self.states[self.key(row)] for row in ids.tolist()]
        made = pad_sequence(rows, batch_first=True)
        return nn.functional.pad(made, (0, 0, 0, ids.size(1) - made.size(1)))


class Trunk:
    """A pretrained model as the start of reward models.

    Args:
        path: Of a decoder.
        lower: How many of its layers are frozen, their states stored; the others get LoRA. 0: all weights are trained.
        dtype: Of the weights.
    """

    def __init__(self, path: str | Path, *, lower: int, dtype: str):
        self.tokenizer, self.lower = AutoTokenizer.from_pretrained(path), lower
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=dtype).eval()
        model.config.pad_token_id = self.pad = self.tokenizer.pad_token_id
        self.model, self.below = (self._upper(model), part(model, 0, lower)) if lower else (model, None)

    def _upper(self, model: PreTrainedModel) -> PreTrainedModel:
        upper = part(model, self.lower, None)
        self.stored = StoredStates(model.get_input_embeddings(), self.pad)
        upper.set_input_embeddings(self.stored)
        return upper

    @torch.no_grad()
    def store(self, sequences: Iterable[list[int]]) -> None:
        """Send through the lower layers what has not been yet."""
        if not self.lower:
            return
        new = {self.stored.key(ids) for ids in sequences} - set(self.stored.states)
        self.below.model.norm = nn.Identity()
        for rows in batches(sorted(new, key=len)):
            ids, mask = padded(rows, self.pad)
            states = self.below.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            self.stored.states |= {row: each[: len(row)].clone() for row, each in zip(rows, states, strict=True)}

    def fresh(self, seed: int) -> PreTrainedModel:
        """A model with a head of the seed's own, in full precision; it shares what is frozen."""
        model = copy.deepcopy(self.model)
        torch.manual_seed(seed)
        model.score = FullPrecision(model.score.in_features, 1, bias=False)
        nn.init.normal_(model.score.weight, std=model.config.initializer_range)
        return model


class FullPrecision(nn.Linear):
    """A head whose scores and weights have all their digits, whatever the trunk has."""

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states.float())


def part(model: PreTrainedModel, first: int, end: int | None) -> PreTrainedModel:
    """The model of these layers only, which shares the weights of the whole."""
    made = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    made.model.layers, config = made.model.layers[first:end], made.config
    config.num_hidden_layers, config.use_cache = len(made.model.layers), False  # they keep their numbers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[first:end]
    return made


def train(
    trunk: Trunk, rows: list[dict], folder: Path, *, coefficient: float, seed: int, learning_rate: float
) -> ImitationRewardTrainer:
    """One pass over pairs of ids, `BATCH` a step."""
    config = ImitationRewardConfig(
        **on_cpu(folder, seed),
        imitation_coef=coefficient,
        per_device_train_batch_size=BATCH,
        learning_rate=learning_rate,
        num_train_epochs=1,
        max_length=max(len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")),
    )
    lora = LoraConfig(**LORA) if trunk.lower else None
    trainer = ImitationRewardTrainer(
        trunk.fresh(seed),
        config,
        train_dataset=Dataset.from_list(rows),
        processing_class=trunk.tokenizer,
        peft_config=lora,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


@torch.no_grad()
def scores(model: PreTrainedModel, rows: list[dict], pad: int) -> list[tuple[float, float]]:
    """Of the chosen and the rejected sequence of each row."""
    sequences = [tuple(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
    found = {}
    with eval_mode(model):
        for some in batches(sorted(set(sequences), key=len)):
            ids, mask = padded(some, pad)
            found |= dict(zip(some, model(input_ids=ids, attention_mask=mask).logits.flatten().tolist(), strict=True))
    return [(found[tuple(row["chosen_ids"])], found[tuple(row["rejected_ids"])]) for row in rows]


@torch.no_grad()
def chosen_nll(model: PreTrainedModel, rows: list[dict], pad: int) -> float:
    """Nats per token of the chosen completions, as the imitation term reads them off the trunk."""
    head, found = vocabulary_head(model), []
    with eval_mode(model), seen_in(under_adapter(model).score, lambda args, output: args[0]) as states:
        for some in batches(rows):
            ids, mask = padded([row["chosen_ids"] for row in some], pad)
            model(input_ids=ids, attention_mask=mask)
            targets = completion_targets(mask, torch.tensor([row[PROMPT_TOKENS] for row in some]))
            found.append(completion_nll(states.pop(), ids, targets, head))
    return torch.cat(found).mean().item()


def padded(rows: list, pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, `(B, T)` each."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return ids, mask


def batches(rows: list) -> Iterable[list]:
    return (rows[i : i + READ] for i in range(0, len(rows), READ))
