"""Whether prompts, with their completions, fit the model's window."""

from collections.abc import Callable, Iterable

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from trl_ext.sequences.texts import Text


def check_windows(
    prompts: Iterable[Text],
    length_of: Callable[[Text, int], int],
    config: PretrainedConfig,
    *,
    max_completion_length: int,
    call: str,
) -> None:
    """Raise a ValueError for the first prompt that, with its completion, would not fit the model's window.

    Args:
        prompts: Text or messages.
        length_of: From a prompt and the room for it to its number of tokens, or 0 where that surely fits.
        config: The model's; one without a window takes everything.
        max_completion_length: In tokens.
        call: Who asks, and where the prompts are from, for the message.
    """
    window = getattr(config.get_text_config(), "max_position_embeddings", None)  # unlimited where it has none
    if window is None:
        return
    room = window - max_completion_length
    for row, prompt in enumerate(prompts):
        length = length_of(prompt, room)
        if length > room:
            raise ValueError(
                f"{call}: the prompt of row {row} has {length} tokens, which with max_completion_length="
                f"{max_completion_length} passes the model's window of {window}. Drop or shorten such prompts, or "
                "lower max_completion_length."
            )


def surely_fits(text: str, tokenizer: PreTrainedTokenizerBase, room: int) -> bool:
    """Whether a text has no more bytes than there is room for: a token is at least a byte, so it need not be read."""
    return len(text.encode()) + tokenizer.num_special_tokens_to_add() <= room
