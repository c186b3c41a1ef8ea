"""The tiny policy: a Llama-shaped language model, pretrained on raw text of the world."""

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_ext.demo.fitting import fit
from trl_ext.demo.world import Entity

BLOCK = 64  # tokens per training row
BATCH = 16  # rows per step


def new_policy(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def packed_blocks(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """All texts, each ended by EOS, one after another and cut into rows, `(N, BLOCK)`."""
    ids = [token for ids in tokenizer(texts).input_ids for token in [*ids, tokenizer.eos_token_id]]
    rows = len(ids) // BLOCK
    return torch.tensor(ids[: rows * BLOCK]).view(rows, BLOCK)


def train_policy(model: LlamaForCausalLM, blocks: Tensor, *, learning_rate: float) -> float:
    """Next-token training, each row read once; returns the mean loss of the last fifty steps."""
    batches = blocks.split(BATCH)
    options = {"steps": len(batches), "learning_rate": learning_rate, "max_norm": 1.0}
    return fit(model, lambda batch: model(input_ids=batch, labels=batch).loss, batches, **options)


@torch.no_grad()
def fact_recall(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, world: list[Entity]) -> float:
    """Share of the facts whose value is the likeliest next word after the sentence up to it."""
    facts = [(entity.sentence(name), value) for entity in world for name, value in entity.facts.items()]
    begun = [f" {sentence[: sentence.rindex(value)].rstrip()}" for sentence, value in facts]
    batch = tokenizer(begun, return_tensors="pt", padding=True, padding_side="left")
    guesses = tokenizer.batch_decode(model(**batch).logits[:, -1:].argmax(-1))
    return sum(guess == f" {value}" for guess, (_, value) in zip(guesses, facts, strict=True)) / len(facts)
