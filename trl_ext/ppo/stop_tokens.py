"""Tokens, besides the end token, with which a completion ends."""

from transformers import PreTrainedTokenizerBase


def stop_token_ids(tokens: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of stop tokens, each of which must be one token of the tokenizer.

    Raises:
        ValueError: For a text that is no single token of it.
    """
    vocabulary = tokenizer.get_vocab()
    ids = []
    for token in tokens:
        found = [vocabulary[token]] if token in vocabulary else tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(found) != 1 or found[0] == tokenizer.unk_token_id:
            raise ValueError(
                f"PPOConfig(stop_tokens={tokens}): {token!r} is no token of the tokenizer "
                f"({len(found)} tokens: {tokenizer.convert_ids_to_tokens(found)}). Name one of its tokens, e.g. "
                f"{tokenizer.eos_token!r}, or add it with tokenizer.add_tokens and resize the model's embeddings."
            )
        ids += found
    return ids
