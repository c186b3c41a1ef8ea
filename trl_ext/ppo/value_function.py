"""Builds the value function that `PPOTrainer(value_model=…)` asks for, and checks that it fits the policy."""

from pathlib import Path

from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import disable_dropout_in_model

from trl_ext.ppo.critic import ValueHead, ValueModel
from trl_ext.rewards.learned_reward import load_scorer


def value_function(
    value_model: str | PreTrainedModel | PeftModel | None,
    *,
    policy: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    gradient_checkpointing: bool,
) -> ValueHead | ValueModel:
    """A linear head on the policy, or a model of its own with the policy's vocabulary.

    Args:
        value_model: None for a head; else a one-label sequence-classification model, or the path of a reward model,
            an adapter of one, or a causal LM (which gets a new head of zeros).
        policy: The model to be trained.
        tokenizer: The policy's.
        gradient_checkpointing: Whether a model of its own recomputes activations in the backward pass.

    Raises:
        ValueError: If the model has more than one label, or another vocabulary or tokenizer than the policy.
    """
    if value_model is None:
        return ValueHead(policy.config.get_text_config().hidden_size)
    model = value_model
    if isinstance(value_model, str):
        model = load_scorer(value_model, new_head=True, trainable=True)
    if model.config.num_labels != 1:
        raise ValueError(
            f"PPOTrainer(value_model={_name(model)!r}): it has {model.config.num_labels} labels; a value is one "
            "number. Load it with num_labels=1."
        )
    _check_vocabulary(model, policy, tokenizer)
    disable_dropout_in_model(model)
    if gradient_checkpointing:
        model.enable_input_require_grads()  # a frozen base under an adapter has none
        model.gradient_checkpointing_enable()
    return ValueModel(model.train())


def _check_vocabulary(model: PreTrainedModel, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    sizes = [m.config.get_text_config().vocab_size for m in (model, policy)]
    other = _tokenizer_beside(_name(model))
    if sizes[0] == sizes[1] and (other is None or other.get_vocab() == tokenizer.get_vocab()):
        return
    came = f"a vocabulary of {sizes[0]} tokens" if sizes[0] != sizes[1] else "another tokenizer"
    raise ValueError(
        f"PPOTrainer(value_model={_name(model)!r}): it has {came}, but reads the policy's own tokens (vocabulary of "
        f"{sizes[1]}). Use a model of the policy's family, or value_model=None for a head on the policy."
    )


def _tokenizer_beside(path: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer saved with a local model; None where there is none to compare with."""
    has_one = any((Path(path) / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    return AutoTokenizer.from_pretrained(path) if has_one else None


def _name(model: PreTrainedModel) -> str:
    return model.config._name_or_path or type(model).__name__
