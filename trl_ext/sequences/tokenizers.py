"""Tokenizers: found beside a model, and told apart by their words."""

import hashlib
import os

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def tokenizer_beside(*places: str | os.PathLike | None, call: str) -> PreTrainedTokenizerBase:
    """The tokenizer at the first of some paths or hub ids that has one.

    Beside a model alone, transformers makes an empty one for some architectures, which is none.

    Raises:
        ValueError: Where no place has one; `call` says who asks.
    """
    reason = ""  # as text: a kept error would keep its callers' frames, and the models in them
    for place in dict.fromkeys(filter(None, places)):
        try:
            tokenizer = AutoTokenizer.from_pretrained(os.path.expanduser(os.fspath(place)))
        except (OSError, ValueError) as error:  # none there
            reason = f" transformers says: {error}"
            continue
        if len(tokenizer.get_vocab()) > len(tokenizer.all_special_ids):
            return tokenizer
    raise ValueError(
        f"{call}: found no tokenizer beside the model. Save the one that it was trained with there, or pass it as "
        f"`tokenizer`.{reason}"
    )


def tokenizer_at(*places: str | os.PathLike | None) -> PreTrainedTokenizerBase | None:
    """`tokenizer_beside`, or None where no place has one."""
    try:
        return tokenizer_beside(*places, call="tokenizer_at")
    except ValueError:
        return None


def reading_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Tells tokenizers apart by all that decides what they make of a prompt; None where that is more than can be read off."""
    if not tokenizer.is_fast or not type(tokenizer).__module__.startswith("transformers."):
        return None
    tokenizer("", verbose=False)  # another call's padding or truncation is written down, too
    parts = [tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map]
    parts += [type(tokenizer).__name__, tokenizer.split_special_tokens]
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Tells tokenizers apart by what their ids mean: equal vocabularies have equal fingerprints."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.blake2b(repr(vocabulary).encode(), digest_size=16).hexdigest()
