"""Token ids for samples that come as text: an endpoint's, a file's, the data set's own."""

import warnings

from trl_ext.generation.protocol import Policy
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.token_ids import prompt_and_completion_ids
from trl_ext.sequences.windows import model_window


def tokenised(samples: list[Sample], policy: Policy) -> list[Sample]:
    """The samples, with token ids for those without; those that are beyond the model's window are left out, aloud."""
    for sample in samples:
        if sample["completion_ids"] is None:
            sample["prompt_ids"], sample["completion_ids"] = prompt_and_completion_ids(
                sample["prompt"],
                sample["completion"],
                policy.tokenizer,
                policy.chat_template_kwargs,
                ended=sample["ended"],
            )
    return _within_window(samples, policy)


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
