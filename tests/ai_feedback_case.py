"""Pairs, and a labeler whose answers are known."""

from datasets import Dataset
from tiny import byte_tokenizer, tiny_llama

from trl_ext import PreferenceLabeler
from trl_ext.ai_feedback import Preamble

PREAMBLE = Preamble("Judge.", "P {prompt}\n1 {completion_1}\n2 {completion_2}", "Better:", "Why:")


def pairs(count: int = 4, **columns) -> Dataset:
    """Text, told apart by their number."""
    rows = [
        {"prompt": f"q{i}", "completion_1": "good " * (i % 3 + 1), "completion_2": f"bad {i}"} for i in range(count)
    ]
    return Dataset.from_list(
        [row | {name: values[i] for name, values in columns.items()} for i, row in enumerate(rows)]
    )


def labeler(seed: int = 0, *, chat: bool = False, window: int = 512, **options) -> PreferenceLabeler:
    """A tiny random model, of which the byte tokenizer makes one token a letter."""
    tokenizer = byte_tokenizer()
    if not chat:
        tokenizer.chat_template = None
    model = tiny_llama(tokenizer, seed=seed, max_position_embeddings=window)
    return PreferenceLabeler(model, tokenizer, **{"preamble": PREAMBLE} | options)
