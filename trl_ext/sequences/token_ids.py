"""Prompts, completions and messages to token ids: text as its tokenizer reads it, messages through the chat template.

A template writes each special token that it wants, BOS among them. So what it renders becomes tokens at once, and is
never read as text again, to which a tokenizer would add its own.
"""

import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from trl_ext.sequences.common_prefix import common_length
from trl_ext.sequences.text_shapes import with_text
from trl_ext.sequences.texts import Text

TemplateKwargs = Mapping[str, Any] | None  # for the chat template: what `chat_template_kwargs` hold, and `tools`


class NoTemplate(ValueError):
    """Messages, and a tokenizer without a chat template."""


def prompt_ids(prompt: Text, tokenizer: PreTrainedTokenizerBase, template_kwargs: TemplateKwargs = None) -> list[int]:
    """The tokens after which a completion begins: of messages, with the header of the assistant's turn."""
    if isinstance(prompt, str):
        return tokenizer(prompt, verbose=False)["input_ids"]
    return _rendered(prompt, tokenizer, template_kwargs, add_generation_prompt=True)


def many_prompt_ids(
    prompts: list[Text], tokenizer: PreTrainedTokenizerBase, template_kwargs: TemplateKwargs = None
) -> list[list[int]]:
    """`prompt_ids` of several, which take less time together."""
    if all(isinstance(prompt, str) for prompt in prompts):
        return tokenizer(prompts, verbose=False)["input_ids"]
    how = {"tokenize": True, "return_dict": True, "add_generation_prompt": True} | dict(template_kwargs or {})
    try:
        return tokenizer.apply_chat_template(list(map(with_text, prompts)), **how)["input_ids"]
    except Exception:  # of one of them, which says it by itself
        return [prompt_ids(prompt, tokenizer, template_kwargs) for prompt in prompts]


def prompt_text(
    messages: list[dict], tokenizer: PreTrainedTokenizerBase, template_kwargs: TemplateKwargs = None
) -> str:
    """Messages as the chat template writes them before they become tokens."""
    return _templated(messages, tokenizer, template_kwargs, tokenize=False, add_generation_prompt=True)


def message_ids(
    messages: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: TemplateKwargs = None,
    *,
    ended: bool = True,
) -> list[int]:
    """A whole conversation; one that did not end leaves its last turn open, unless the template cannot."""
    if not ended:
        try:
            return _rendered(messages, tokenizer, template_kwargs, continue_final_message=True)
        except ValueError:  # the template changes the last message, so that its end cannot be left open
            pass
    return _rendered(messages, tokenizer, template_kwargs)


def whole_ids(
    prompt: Text,
    completion: Text,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: TemplateKwargs = None,
    *,
    ended: bool = True,
) -> list[int]:
    """Prompt and completion, read together, with the end token, or the end of the turn, if and only if it ended."""
    if not isinstance(prompt, str):
        return message_ids([*prompt, *completion], tokenizer, template_kwargs, ended=ended)
    eos = tokenizer.eos_token or ""
    needs_end = ended and not completion.endswith(eos)
    return tokenizer(prompt + completion + (eos if needs_end else ""), verbose=False)["input_ids"]


def prompt_and_completion_ids(
    prompt: Text,
    completion: Text,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: TemplateKwargs = None,
    *,
    ended: bool = True,
) -> tuple[list[int], list[int]]:
    """`whole_ids`, cut where they part from the prompt alone, as SFTTrainer cuts them.

    A token that merges the end of the prompt with the beginning of the completion is the completion's.
    """
    whole = whole_ids(prompt, completion, tokenizer, template_kwargs, ended=ended)
    common = common_length([prompt_ids(prompt, tokenizer, template_kwargs), whole])
    return whole[:common], whole[common:]


def row_template_kwargs(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row asks of the chat template, in TRL's columns `chat_template_kwargs` and `tools`, a list or JSON.

    >>> row_template_kwargs({"prompt": "2 + 2?", "tools": "[]", "chat_template_kwargs": {"enable_thinking": False}})
    {'tools': [], 'enable_thinking': False}
    """
    tools = row.get("tools")
    own = {} if tools is None else {"tools": json.loads(tools) if isinstance(tools, str) else tools}
    return own | (row.get("chat_template_kwargs") or {})


def _rendered(
    messages: list[dict], tokenizer: PreTrainedTokenizerBase, template_kwargs: TemplateKwargs, **how: bool
) -> list[int]:
    return _templated(messages, tokenizer, template_kwargs, tokenize=True, return_dict=True, **how)["input_ids"]


def _templated(messages: list[dict], tokenizer: PreTrainedTokenizerBase, template_kwargs: TemplateKwargs, **how: bool):
    try:
        return tokenizer.apply_chat_template(with_text(messages), **how, **(template_kwargs or {}))
    except ValueError as error:  # transformers', which says what it lacks
        if tokenizer.chat_template is None and "chat_template" in str(error):
            raise NoTemplate(
                "the tokenizer has no chat template, without which messages do not become tokens. Give one that has, set "
                "`tokenizer.chat_template`, or give text"
            ) from error
        raise
    except Exception as error:  # a template is a program, which may do anything
        raise ValueError(
            f"the chat template cannot write these messages, of the roles {[m.get('role') for m in messages]} "
            f"({type(error).__name__}: {error}). Give roles and contents that it knows, or another template."
        ) from error
