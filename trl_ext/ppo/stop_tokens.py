"""Tokens, besides the end token, with which a completion ends."""

import warnings
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from trl_ext.sequences.turn_end import end_with_turn, turn_end_id
from trl_ext.trainer_kit.processes import is_main_process
from trl_ext.trainer_kit.trl_versions import add_end_tokens, end_tokens, knows_one_end_token

if TYPE_CHECKING:
    from trl import GRPOTrainer


def set_end_tokens(trainer: "GRPOTrainer") -> None:
    """Let completions also end with the config's stop tokens and, of messages, where an assistant's turn is closed."""
    tokenizer, template_kwargs = trainer._tokenizer, trainer.args.chat_template_kwargs or {}
    if trainer.args.stop_tokens:
        add_end_tokens(trainer, stop_token_ids(trainer.args.stop_tokens, tokenizer))
    if isinstance(next(iter(trainer.train_dataset))["prompt"], str):  # the chat template is never used
        return
    if knows_one_end_token(trainer):
        _warn_of_going_on(trainer, turn_end_id(tokenizer, **template_kwargs))
        return
    end = end_with_turn(trainer.model, tokenizer, call="PPOTrainer", **template_kwargs)
    if end is not None and end not in end_tokens(trainer):
        add_end_tokens(trainer, [end])


def _warn_of_going_on(trainer: "GRPOTrainer", end: int | None) -> None:
    if end in (None, *end_tokens(trainer)) or not is_main_process():
        return
    token = trainer._tokenizer.convert_ids_to_tokens(end)
    warnings.warn(
        f"PPOTrainer: the chat template closes an assistant's turn with {token!r}, and this version of TRL ends completions "
        f"with the tokenizer's {trainer._tokenizer.eos_token!r} only, so they go on behind it and are learned from beyond "
        f"their end. Upgrade TRL, or set tokenizer.eos_token={token!r} first.",
        stacklevel=4,
    )


def stop_token_ids(tokens: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of stop tokens, each of which must be one token of the tokenizer.

    Raises:
        ValueError: For a text that is no single token of it.
    """
    vocabulary = tokenizer.get_vocab()
    ids = []
    for token in tokens:
        found = [vocabulary[token]] if token in vocabulary else tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(found) != 1 or found[0] == tokenizer.unk_token_id:
            raise ValueError(
                f"PPOConfig(stop_tokens={tokens}): {token!r} is no token of the tokenizer "
                f"({len(found)} tokens: {tokenizer.convert_ids_to_tokens(found)}). Name one of its tokens, e.g. "
                f"{tokenizer.eos_token!r}, or add it with tokenizer.add_tokens and resize the model's embeddings."
            )
        ids += found
    return ids
