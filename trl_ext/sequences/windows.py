"""The model's window, and whether prompts with their completions fit it."""

import math
from collections.abc import Iterable

from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from trl_ext.sequences.prompt_facts import token_facts
from trl_ext.sequences.prompt_rows import prompt_facts
from trl_ext.sequences.template_check import check_has_template, check_template
from trl_ext.sequences.texts import Text
from trl_ext.sequences.token_ids import TemplateKwargs, prompt_ids
from trl_ext.sequences.vocabulary import check_ids, check_vocabulary, embedding_rows, unread_tokens


def model_window(config: PretrainedConfig) -> int | None:
    """The most tokens that a model reads at once; None where it sets no limit."""
    window = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return window if window is not None and window > 0 else None  # XLNet's is −1


def check_windows(
    prompts: Iterable[Text],
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    *,
    max_completion_length: int,
    call: str,
    template_kwargs: TemplateKwargs = None,
    rows: Iterable[int] | None = None,
) -> None:
    """Raise a ValueError for the first prompt that the chat template cannot write, or passes over, that has a token without an
    embedding, or that, with its completion, would not fit the model's window.

    Args:
        prompts: Text or messages.
        tokenizer, config: The model's; one without a window takes everything.
        max_completion_length: In tokens.
        call: Who asks, and where the prompts are from, for the message.
        template_kwargs: For the chat template.
        rows: Numbers of the prompts, for the message; None: 0, 1, …
    """
    prompts = list(prompts)
    rows = range(len(prompts)) if rows is None else list(rows)
    check_has_template(prompts, tokenizer, call=call)
    if unread_tokens(tokenizer, config):
        check_vocabulary(tokenizer, config, call=call)
        check_ids((prompt_ids(prompt, tokenizer, template_kwargs) for prompt in prompts), tokenizer, config, call=call)
    window = model_window(config)
    room = math.inf if window is None else window - max_completion_length
    for row, prompt in zip(rows, prompts, strict=True):
        if isinstance(prompt, str) and _surely_fits(prompt, tokenizer, room):
            continue
        try:
            length = len(prompt_ids(prompt, tokenizer, template_kwargs))
        except ValueError as error:
            raise ValueError(f"{call}: the prompt of row {row} does not become tokens: {error}") from error
        if length > room:
            raise ValueError(
                f"{call}: the prompt of row {row} has {length} tokens, which with max_completion_length="
                f"{max_completion_length} passes the model's window of {window}. Drop or shorten such prompts, or "
                "lower max_completion_length."
            )
    check_template(prompts, tokenizer, call=call, template_kwargs=template_kwargs, rows=rows)


def check_all_windows(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    *,
    max_completion_length: int,
    call: str,
    template_kwargs: TemplateKwargs = None,
) -> None:
    """`check_windows` of all prompts of a data set, of which no more is read than says that they fit, and that once."""
    options = {"max_completion_length": max_completion_length, "call": call, "template_kwargs": template_kwargs}
    facts, window = prompt_facts(dataset, call=call), model_window(config)
    room = math.inf if window is None else window - max_completion_length
    check_has_template([dataset[0]["prompt"]], tokenizer, call=call)
    rows = embedding_rows(config) if unread_tokens(tokenizer, config) else None
    if rows is not None:
        check_vocabulary(tokenizer, config, call=call)
    is_read = facts.asks or rows is not None or not _surely_fit(facts.longest, tokenizer, room)
    if is_read and not _fit(dataset, tokenizer, template_kwargs, room=room, rows=rows):
        check_windows(dataset["prompt"], tokenizer, config, **options)  # says which does not
    asking = sorted(facts.asks.values())
    prompts = [dataset[row]["prompt"] for row in asking]
    check_template(prompts, tokenizer, call=call, template_kwargs=template_kwargs, rows=asking)


def _fit(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: TemplateKwargs,
    *,
    room: float,
    rows: int | None,
) -> bool:
    """Whether all prompts become tokens, as few as there is room for, and with ids below so many rows."""
    try:
        found = token_facts(dataset, tokenizer, template_kwargs)
    except ValueError:
        return False
    return found["longest"] <= room and (rows is None or found["highest"] < rows)


def _surely_fits(text: str, tokenizer: PreTrainedTokenizerBase, room: float) -> bool:
    """Whether it need not be read: a token is at least a byte, and a tokenizer may put a space before all."""
    return _surely_fit(len(text.encode()), tokenizer, room)


def _surely_fit(longest: int, tokenizer: PreTrainedTokenizerBase, room: float) -> bool:
    """The same of texts of so many bytes at most."""
    return longest + 1 + tokenizer.num_special_tokens_to_add() <= room
