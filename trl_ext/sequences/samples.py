"""A completion of a prompt, with its tokens, and who made it."""

from typing import NotRequired, TypedDict

from trl_ext.sequences.texts import Text


class Sample(TypedDict):
    """One completion of one prompt, and who made it."""

    row: int  # number of the prompt in the Grow
    sample: int  # 0 … K − 1
    prompt: Text
    completion: Text  # as it continues the prompt; messages for messages
    prompt_ids: list[int] | None  # what the policy's tokenizer made of the prompt; None: not tokenised yet
    completion_ids: list[int] | None  # as sampled, its end token included; None: not tokenised yet
    ended: bool  # whether it came to its own end, rather than to the length limit
    generator: str  # who made it, e.g. "transformers", "vllm", "endpoint:gpt-x", "file:expert.jsonl"
    seed: int  # what to sample it again with; −1 where there is none
    log_probs: NotRequired[list[float] | None]  # ln of the probability with which each of `completion_ids` was drawn


def as_completion(prompt: Text, text: str) -> Text:
    """The text in the form of its prompt: text for text, one assistant message for messages.

    >>> as_completion([{"role": "user", "content": "2 + 2?"}], "4")
    [{'role': 'assistant', 'content': '4'}]
    """
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text.lstrip()}]
