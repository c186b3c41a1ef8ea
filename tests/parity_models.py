"""Models whose weights are a formula, so that any version of torch and of TRL starts from the same numbers."""

import torch
from tiny import byte_tokenizer, tiny_config
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

SIZES = {
    "vocab_size": 24,  # of the byte tokenizer's first tokens, <eos> among them, so that some completions end
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "max_position_embeddings": 32,
}
LAYERS = {"policy": 1.0, "reference": 2.0, "value": 3.0, "reward": 4.0}  # each its own phase


def filled(model, phase: float):
    """The model with weights sin(1, 2, 3, … · a number of its own) instead of random ones; norms stay at 1."""
    with torch.no_grad():
        for i, (_, weight) in enumerate(sorted(model.named_parameters())):
            if weight.ndim > 1:
                numbers = torch.arange(1, weight.numel() + 1, dtype=torch.float64)
                wave = torch.sin(numbers * (1.7 + 0.37 * i) + phase * (i + 1))
                weight.copy_((0.6 * wave).reshape(weight.shape))
    return model.eval()


def causal_lm(role: str, *, pad_is_eos: bool = False) -> LlamaForCausalLM:
    return filled(LlamaForCausalLM(tiny_config(byte_tokenizer(pad_is_eos=pad_is_eos), **SIZES)), LAYERS[role])


def scorer(role: str, *, pad_is_eos: bool = False) -> LlamaForSequenceClassification:
    config = tiny_config(byte_tokenizer(pad_is_eos=pad_is_eos), num_labels=1, **SIZES)
    return filled(LlamaForSequenceClassification(config), LAYERS[role])
