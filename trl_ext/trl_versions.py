"""What differs between the versions of TRL and transformers that are supported. All of it is here."""

from peft import PeftModel
from transformers import PreTrainedModel
from trl import GRPOTrainer


def end_tokens(trainer: GRPOTrainer) -> list[int]:
    """Ids of the tokens with which a completion ends; TRL 1.12 knows one only."""
    return getattr(trainer, "eos_token_ids", [trainer._tokenizer.eos_token_id])


def add_end_tokens(trainer: GRPOTrainer, ids: list[int]) -> None:
    """Let further tokens end a completion, in sampling and in what the trainer masks.

    Raises:
        ValueError: On a TRL that knows one end token only.
    """
    if not hasattr(trainer, "eos_token_ids"):
        raise ValueError(
            f"{type(trainer).__name__}: this version of TRL knows one end token only, so stop_tokens={ids} would be learned "
            "from beyond their end. Upgrade TRL, or set tokenizer.eos_token to the stop token."
        )
    trainer.eos_token_ids = [*dict.fromkeys([*trainer.eos_token_ids, *ids])]
    trainer.generation_config.eos_token_id = trainer.eos_token_ids


def recompute_activations(model: PreTrainedModel | PeftModel, how: dict | None = None) -> None:
    """Let a model compute its activations anew in the backward pass; transformers 5.23 has another name for it.

    Args:
        model: The model.
        how: As `gradient_checkpointing_kwargs`.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    new = getattr(base, "activation_checkpointing_enable", None)
    (new or base.gradient_checkpointing_enable)(how)
