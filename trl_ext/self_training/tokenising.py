"""Token ids for samples that come as text: an endpoint's, a file's, the data set's own."""

from trl_ext.generation.protocol import Policy
from trl_ext.sequences.common_prefix import common_length
from trl_ext.sequences.samples import Sample


def tokenised(samples: list[Sample], policy: Policy) -> list[Sample]:
    """The samples, with token ids for those without.

    Prompt and completion are read together, as SFTTrainer reads them; the completion begins where that differs from the
    prompt alone. It gets the end token, or the end of the turn, if and only if it ended.
    """
    for sample in samples:
        if sample["completion_ids"] is None:
            whole = _whole_ids(sample, policy)
            common = common_length([policy.prompt_ids(sample["prompt"]), whole])
            sample["prompt_ids"], sample["completion_ids"] = whole[:common], whole[common:]
    return samples


def _whole_ids(sample: Sample, policy: Policy) -> list[int]:
    tokenizer, prompt, completion = policy.tokenizer, sample["prompt"], sample["completion"]
    if isinstance(prompt, str):
        needs_end = sample["ended"] and not completion.endswith(tokenizer.eos_token)
        return tokenizer(prompt + completion + (tokenizer.eos_token if needs_end else ""))["input_ids"]
    messages, options = [*prompt, *completion], {"return_dict": True} | policy.chat_template_kwargs
    if not sample["ended"]:
        try:
            return tokenizer.apply_chat_template(messages, continue_final_message=True, **options)["input_ids"]
        except ValueError:  # the template changes the last message, so that its end cannot be left open
            pass
    return tokenizer.apply_chat_template(messages, **options)["input_ids"]
