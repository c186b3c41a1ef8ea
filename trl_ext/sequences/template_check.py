"""Whether the chat template hands on what is said: many write nothing of a role that they do not know."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from trl_ext.sequences.texts import Text
from trl_ext.sequences.token_ids import TemplateKwargs, prompt_text

WORD = "zyxwvu"  # said in place of a last message, and looked for in what the template writes
NOT_ASKED = ("assistant", "tool")  # templates cut their reasoning, or write their answers as JSON


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
