"""What a policy sampled, as text that continues its prompt."""

from transformers import PreTrainedTokenizerBase


def continuation_texts(completion_ids: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Completions as text, with the space that they begin with.

    Decoded by itself, a text loses its first space to tokenizers such as Llama-2's, so that a reward model would read
    "…queen.She" where it was trained on "…queen. She". So each is decoded behind another word, which is then cut off.
    """
    word = tokenizer("a", add_special_tokens=False)["input_ids"]
    texts = tokenizer.batch_decode([word, *(word + list(ids) for ids in completion_ids)], skip_special_tokens=True)
    return [text.removeprefix(texts[0]) for text in texts[1:]]


def as_continuations(completions: list, completion_ids: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list:
    """Completions as they continue their prompts, with the space that they begin with; messages are left alone."""
    return continuation_texts(completion_ids, tokenizer) if isinstance(completions[0], str) else completions
