"""Token ids for samples that come as text: an endpoint's, a file's, the data set's own."""

import warnings

from trl_ext.generation.protocol import Policy
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.token_ids import prompt_and_completion_ids
from trl_ext.sequences.vocabulary import check_ids, embedding_rows, unread_id
from trl_ext.sequences.windows import model_window


def tokenised(samples: list[Sample], policy: Policy) -> list[Sample]:
    """The samples, with token ids for those without; those that the model cannot read whole are left out, aloud.

    Raises:
        ValueError: For ids that a generator gave, and that are beyond the model's embedding.
    """
    with_ids = [sample for sample in samples if sample["completion_ids"] is not None]
    texts = [sample for sample in samples if sample["completion_ids"] is None]
    for sample in with_ids if policy.model is not None else ():
        call = f"the generator {sample['generator']!r}, for the prompt of row {sample['row']}"
        check_ids([sample["prompt_ids"], sample["completion_ids"]], policy.tokenizer, policy.model.config, call=call)
    for sample in texts:
        sample["prompt_ids"], sample["completion_ids"] = prompt_and_completion_ids(
            sample["prompt"],
            sample["completion"],
            policy.tokenizer,
            policy.chat_template_kwargs,
            ended=sample["ended"],
        )
    return _within_window(_embedded(samples, policy), policy)


def _embedded(samples: list[Sample], policy: Policy) -> list[Sample]:
    """Those without a token that the model has no embedding for: a text from elsewhere may spell one of the tokenizer's."""
    if policy.model is None:
        return samples
    ids = ([*sample["prompt_ids"], *sample["completion_ids"]] for sample in samples)
    rows = embedding_rows(policy.model.config)
    beyond = [unread_id(row, rows) for row in ids]
    unread = [(sample, token) for sample, token in zip(samples, beyond, strict=True) if token is not None]
    if unread:
        first, token = unread[0]
        warnings.warn(
            f"{len(unread)} of {len(samples)} samples of this part have a token that the model has no embedding for and are "
            f"left out, e.g. {policy.tokenizer.convert_ids_to_tokens(token)!r} (id {token}) in one of {first['generator']!r} for "
            f"the prompt of row {first['row']}. Call model.resize_token_embeddings(len(tokenizer)), or take it out of them.",
            stacklevel=2,
        )
    return [sample for sample, token in zip(samples, beyond, strict=True) if token is None]


def _within_window(samples: list[Sample], policy: Policy) -> list[Sample]:
    window = None if policy.model is None else model_window(policy.model.config)
    lengths = [len(sample["prompt_ids"]) + len(sample["completion_ids"]) for sample in samples]
    if window is None or max(lengths, default=0) <= window:
        return samples
    first = next(sample for sample, length in zip(samples, lengths, strict=True) if length > window)
    warnings.warn(
        f"{sum(length > window for length in lengths)} of {len(samples)} samples of this part, with their prompts, pass "
        f"the model's window of {window} tokens and are left out, e.g. one of {first['generator']!r} for the prompt of "
        f"row {first['row']} with {max(lengths)}. Shorten them, or let max_completion_length leave room.",
        stacklevel=2,
    )
    return [sample for sample, length in zip(samples, lengths, strict=True) if length <= window]
