"""Whether a model has an embedding for each token that its tokenizer makes of a text.

A tokenizer may know more tokens than the model has rows and never make one of the rest, as that of a model whose family
also reads images does. So it is judged by what it puts around every text, and by the texts.
"""

from collections.abc import Iterable

from transformers import PretrainedConfig, PreTrainedTokenizerBase


def unread_tokens(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> dict[str, int]:
    """Tokens beyond the model's embedding, with their ids; none where a config says no size."""
    rows = embedding_rows(config)
    if rows is None or max([len(tokenizer) - 1, *tokenizer.added_tokens_decoder]) < rows:
        return {}
    return {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, call: str, pad_token_id: int | None = None
) -> None:
    """Raise a ValueError for a tokenizer that makes ids beyond the model's embedding, whatever the text.

    Args:
        tokenizer: Its own words, and what it puts around a text and behind it, must have rows; a token that was added
            may be without, until a text has it.
        config: The model's.
        call: Who asks, for the message.
        pad_token_id: With which batches are padded; None: none is needed.
    """
    unread = unread_tokens(tokenizer, config)
    if not unread:
        return
    around = {*tokenizer("")["input_ids"], tokenizer.eos_token_id, pad_token_id}
    made = {token for token in unread.values() if token in around or token not in tokenizer.added_tokens_decoder}
    if made:
        raise _error(min(made), tokenizer, config, call)


def check_ids(
    ids: Iterable[list[int]], tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, call: str
) -> None:
    """Raise a ValueError for the first row with an id that the model has no embedding for."""
    rows = embedding_rows(config)
    for row in ids:
        if (unread := unread_id(row, rows)) is not None:
            raise _error(unread, tokenizer, config, call)


def unread_id(ids: list[int], rows: int | None) -> int | None:
    """One of the ids that an embedding of so many rows does not read, the largest or a negative one; None: it reads all.

    >>> unread_id([0, 7, 9], 8), unread_id([0, -1], 8), unread_id([0, 7], 8), unread_id([], 8)
    (9, -1, None, None)
    """
    if rows is None:
        return None
    return next((end for end in (max(ids, default=0), min(ids, default=0)) if not 0 <= end < rows), None)


def is_token(id: int | None, config: PretrainedConfig) -> bool:
    """Whether the model has an embedding for an id."""
    return id is not None and unread_id([id], embedding_rows(config)) is None


def embedding_rows(config: PretrainedConfig) -> int | None:
    """How many ids a model reads; None where there is no limit."""
    return getattr(config.get_text_config(), "vocab_size", None)  # a model of bytes has none


def _error(id: int, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, call: str) -> ValueError:
    if id < 0:
        return ValueError(f"{call}: there is the id {id}, and no token has a negative one. Give a tokenizer's ids.")
    return ValueError(
        f"{call}: the tokenizer has {len(tokenizer)} tokens and the model's embedding {embedding_rows(config)} rows, so that "
        f"{tokenizer.convert_ids_to_tokens(id)!r} (id {id}) cannot be read. Call "
        "model.resize_token_embeddings(len(tokenizer)) and train the new rows, or give the tokenizer that was saved with "
        "the model."
    )
