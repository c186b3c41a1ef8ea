"""What differs between the versions of TRL and transformers that are supported. All of it is here."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn
from trl.trainer import utils

if TYPE_CHECKING:
    from transformers import Trainer
    from trl import GRPOTrainer, SFTTrainer


# TRL 1.12


def end_tokens(trainer: "GRPOTrainer") -> list[int]:
    """Ids of the tokens with which a completion ends; TRL 1.12 knows one only."""
    return getattr(trainer, "eos_token_ids", [trainer._tokenizer.eos_token_id])


def knows_one_end_token(trainer: "GRPOTrainer") -> bool:
    """Whether this version of TRL ends completions with the tokenizer's end token only."""
    return not hasattr(trainer, "eos_token_ids")


def add_end_tokens(trainer: "GRPOTrainer", ids: list[int]) -> None:
    """Let further tokens end a completion, in sampling and in what the trainer masks.

    Raises:
        ValueError: On a TRL that knows one end token only.
    """
    if knows_one_end_token(trainer):
        raise ValueError(
            f"{type(trainer).__name__}: this version of TRL knows one end token only, so stop_tokens={ids} would be learned "
            "from beyond their end. Upgrade TRL, or set tokenizer.eos_token to the stop token."
        )
    trainer.eos_token_ids = [*dict.fromkeys([*trainer.eos_token_ids, *ids])]
    if trainer.use_vllm:  # which samples by what its own copy of the model names, and by this
        engine = trainer.vllm_generation
        stops = [*engine.generation_kwargs.get("stop_token_ids", []), *ids]
        engine.generation_kwargs = engine.generation_kwargs | {"stop_token_ids": stops}
    else:
        trainer.generation_config.eos_token_id = trainer.eos_token_ids


def reads_bare_head() -> bool:
    """Whether this version of TRL reads log-probabilities off the vocabulary head's weights; TRL 1.12 calls the head."""
    return hasattr(utils, "add_fused_lm_head")


# transformers 5.23 and 5.24, whose older names still work until 6 and 5.40


def recompute_activations(base: nn.Module, how: dict | None = None) -> None:
    """Let a model, without adapter, compute its activations anew in the backward pass; `how` is TRL's
    `gradient_checkpointing_kwargs`.
    """
    new = getattr(base, "activation_checkpointing_enable", None)
    (new or base.gradient_checkpointing_enable)(how)


def cache_argument(base: nn.Module) -> str | None:
    """The name under which a model, without adapter, takes keys and values read before; None: it does not."""
    parameters = inspect.signature(base.forward).parameters
    return next((name for name in ("past_key_values", "cache") if name in parameters), None)


# transformers 5.17, whose models are written by the first of all processes alone, whoever saves


@contextmanager
def saved_by_all(model: nn.Module) -> Iterator[None]:
    """Inside, `save_pretrained` writes in each process that calls it, as the first one of each machine does."""
    if not hasattr(model, "should_save_on_this_rank"):  # an adapter, or a former transformers: they do so
        yield
        return
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        yield
    finally:
        del model.should_save_on_this_rank


# TRL's counts of tokens


def tokens_read(trainer: "Trainer") -> float:
    """How many tokens it has read so far: GRPOTrainer counts them in its state, SFTTrainer and RewardTrainer in a field."""
    return max(trainer.state.num_input_tokens_seen, getattr(trainer, "_total_train_tokens", 0))


def count_tokens(trainer: "SFTTrainer", mask: Tensor) -> None:
    """Count and log the real tokens of a batch, where a loss is not SFTTrainer's own."""
    read = trainer.accelerator.gather_for_metrics(mask.sum()).sum().item()
    trainer._total_train_tokens = getattr(trainer, "_total_train_tokens", 0) + read
    trainer._metrics["train"]["num_tokens"] = [trainer._total_train_tokens]
