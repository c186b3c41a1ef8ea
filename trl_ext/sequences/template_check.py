"""Whether there is a chat template where one is needed, and it hands on what is said: many write nothing of a role that
they do not know.
"""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from trl_ext.sequences.texts import Text
from trl_ext.sequences.token_ids import NoTemplate, TemplateKwargs, prompt_text

WORD = "zyxwvu"  # said in place of a last message, and looked for in what the template writes
NOT_ASKED = ("assistant", "tool")  # templates cut their reasoning, or write their answers as JSON


def check_has_template(texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase, *, call: str) -> None:
    """Raise a ValueError for messages which the tokenizer has no chat template for, tried with the first ones."""
    messages = next((text for text in texts if not isinstance(text, str)), None)
    if not messages or tokenizer.chat_template is not None:
        return
    try:
        prompt_text(messages, tokenizer)
    except NoTemplate as error:
        raise ValueError(f"{call}: {error}.") from error
    except ValueError:  # of these messages, which is said where they are read
        pass


def check_template_is_asked(firsts: Iterable[Text], template_kwargs: TemplateKwargs, *, call: str) -> None:
    """Raise a ValueError for options of a chat template that nothing goes through.

    Args:
        firsts: The first of each column that is read, all whose values are text or messages like it.
        template_kwargs: The options.
        call: Who asks, for the message.
    """
    if template_kwargs and all(isinstance(first, str) for first in firsts):
        raise ValueError(
            f"{call}, chat_template_kwargs={dict(template_kwargs)}: they do nothing, since all prompts are text, which no "
            "chat template writes. Leave them out, or give messages."
        )


def check_template(
    prompts: Iterable[Text],
    tokenizer: PreTrainedTokenizerBase,
    *,
    call: str,
    template_kwargs: TemplateKwargs = None,
    rows: Iterable[int],
) -> None:
    """Raise a ValueError for messages whose last one would not reach the model, tried with a word, once for each role.

    Args:
        prompts: Text, of which there is nothing to say, or messages.
        tokenizer: With the chat template.
        call: Who asks, and where the prompts are from, for the message.
        template_kwargs: For the chat template.
        rows: Numbers of the prompts, for the message.
    """
    prompts = list(prompts)
    check_has_template(prompts, tokenizer, call=call)
    tried = set(NOT_ASKED)
    for row, prompt in zip(rows, prompts, strict=True):
        if isinstance(prompt, str) or prompt[-1]["role"] in tried:
            continue
        role = prompt[-1]["role"]
        tried.add(role)
        if WORD not in prompt_text([*prompt[:-1], {**prompt[-1], "content": WORD}], tokenizer, template_kwargs):
            raise ValueError(
                f"{call}: the chat template writes nothing of what the prompt of row {row} asks, in a message of role "
                f"{role!r}. Give it a role that the template knows, such as 'user', or give another template."
            )
