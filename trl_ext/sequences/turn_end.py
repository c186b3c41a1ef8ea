"""The token that closes an assistant's turn, read from the chat template, and whether a model knows it as an end."""

import warnings

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.sequences.common_prefix import common_length
from trl_ext.trainer_kit.processes import is_main_process

TEACH_THE_END = (
    "see that answers can end: the model has to know the tokenizer's eos_token and the token with which its chat template "
    "closes a turn, as SFT on answers that end with it teaches"
)
ANSWERS = ("yes", "no")  # the rendered tokens differ up to the end of the answer, and agree behind it


def turn_end_id(tokenizer: PreTrainedTokenizerBase, **template_kwargs) -> int | None:
    """The special or added token with which the chat template closes what an assistant says, wherever it says it.

    Where the template closes the last turn of all otherwise than those before, it is the first of the last. None where
    it closes a turn with no such token, fails, or does not exist.

    Args:
        tokenizer: With the chat template.
        template_kwargs: Passed on to it.
    """
    for content in (str, lambda text: [{"type": "text", "text": text}]):
        last = _marks_behind(tokenizer, content, follows=False, **template_kwargs)
        earlier = _marks_behind(tokenizer, content, follows=True, **template_kwargs)
        everywhere = last[: common_length([last, earlier])]
        if last:
            return everywhere[-1] if everywhere else last[0]
    return None


def end_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | PeftModel | None) -> list[int]:
    """The tokens that end a completion: the tokenizer's, and those of the model's generation config."""
    ids = [tokenizer.eos_token_id, *(() if model is None else _configured(model))]
    return list(dict.fromkeys(i for i in ids if i is not None))


def end_with_turn(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, *, call: str, **template_kwargs
) -> int | None:
    """Let the model's generation config, which is saved with it, name the token that closes an assistant's turn.

    A base that was fine-tuned on messages writes this token and then goes on, where only its `<eos>` is known as an end.

    Args:
        model, tokenizer: Of the policy.
        call, template_kwargs: As for `announced_turn_end`.

    Returns:
        The token; None where the template has none.
    """
    known = end_ids(tokenizer, model)
    end = announced_turn_end(tokenizer, known, call=call, **template_kwargs)
    if end is not None and end not in _configured(model):
        model.generation_config.eos_token_id = list(dict.fromkeys([*known, end]))
    return end


def announced_turn_end(
    tokenizer: PreTrainedTokenizerBase, known: list[int], *, call: str, **template_kwargs
) -> int | None:
    """The token that closes an assistant's turn, with a warning where it is not among the known ends.

    Args:
        tokenizer: With the chat template.
        known: Tokens that end a completion anyway.
        call: Who asks, for the warning.
        template_kwargs: Passed on to the chat template.
    """
    end = turn_end_id(tokenizer, **template_kwargs)
    if end not in (None, *known) and is_main_process():
        warnings.warn(
            f"{call}: the chat template closes an assistant's turn with {tokenizer.convert_ids_to_tokens(end)!r}, which "
            "neither the tokenizer nor the model's generation config names as an end token. Completions now end with it "
            "too. Name it in model.generation_config.eos_token_id and this is not said; give another chat template if it "
            "is not the end.",
            stacklevel=3,
        )
    return end


def _configured(model: PreTrainedModel | PeftModel) -> list[int | None]:
    ids = model.generation_config.eos_token_id
    return ids if isinstance(ids, list) else [ids]


def _marks_behind(tokenizer: PreTrainedTokenizerBase, content, *, follows: bool, **template_kwargs) -> list[int]:
    """Special and added tokens behind an assistant's text, whether or not more turns follow."""
    question = {"role": "user", "content": content("why?")}
    more = [question, {"role": "assistant", "content": content("so.")}] if follows else []
    try:
        one, other = (
            tokenizer.apply_chat_template(
                [question, {"role": "assistant", "content": content(answer)}, *more],
                tokenize=True,
                return_dict=True,
                **template_kwargs,
            )["input_ids"][::-1]
            for answer in ANSWERS
        )
    except Exception:  # a template is a program, which may do anything
        return []
    marks = _marks(tokenizer)
    behind = one[: common_length([one, other])] if one != other else []
    return [token for token in reversed(behind) if token in marks]


def _marks(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special and added tokens, without those that are white space or stand for what is unknown."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    return added - {tokenizer.unk_token_id} | {tokenizer.eos_token_id}
