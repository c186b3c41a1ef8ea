"""Token ids for samples that come as text: an endpoint's, a file's, the data set's own."""

from trl_ext.generation.protocol import Policy
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.token_ids import prompt_and_completion_ids


def tokenised(samples: list[Sample], policy: Policy) -> list[Sample]:
    """The samples, with token ids for those without."""
    for sample in samples:
        if sample["completion_ids"] is None:
            sample["prompt_ids"], sample["completion_ids"] = prompt_and_completion_ids(
                sample["prompt"],
                sample["completion"],
                policy.tokenizer,
                policy.chat_template_kwargs,
                ended=sample["ended"],
            )
    return samples
