"""Tokenizers: found beside a model, and told apart by their words."""

import hashlib

from transformers import PreTrainedTokenizerBase


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Tells tokenizers apart by what their ids mean: equal vocabularies have equal fingerprints."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.blake2b(repr(vocabulary).encode(), digest_size=16).hexdigest()
