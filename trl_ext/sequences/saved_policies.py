"""Models that a trainer is given by the path of an adapter."""

from collections.abc import Callable
from functools import partial
from typing import Any

from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from trl_ext.sequences.tokenizers import tokenizer_at
from trl_ext.trainer_kit.loading import whole_loading
from trl_ext.trainer_kit.saved_adapters import is_adapter, load_with_adapter

Given = str | PreTrainedModel | PeftModel
Tokenizer = PreTrainedTokenizerBase | None


def policy_at(
    model: Given,
    tokenizer: Tokenizer,
    args: TrainingArguments | None,
    quantization_config: BitsAndBytesConfig | None,
    *,
    trainer: str,
) -> tuple[Given, Tokenizer]:
    """`adapter_at` of a causal LM's adapter, which is trained on; `trainer` asks."""
    load = partial(load_with_adapter, auto=AutoModelForCausalLM, call=f"{trainer}(model={model!r})", trainable=True)
    return adapter_at(model, tokenizer, args, quantization_config, load=load)


def adapter_at(
    model: Given,
    tokenizer: Tokenizer,
    args: TrainingArguments | None,
    quantization_config: BitsAndBytesConfig | None,
    *,
    load: Callable[..., PeftModel],
) -> tuple[Given, Tokenizer]:
    """Model and tokenizer as they came; of an adapter's path, the adapter on its base, and the tokenizer beside it.

    TRL takes the names of whole models only, and from an adapter's base a tokenizer without the tokens that were added.

    Args:
        model, tokenizer, quantization_config: As given to a trainer.
        args: Whose `model_init_kwargs` load the base, in float32 unless they say otherwise, as in TRL.
        load: Loads the adapter at a path, with arguments of `from_pretrained`.
    """
    if not isinstance(model, str) or not is_adapter(model):
        return model, tokenizer
    options: dict[str, Any] = {"dtype": "float32"} | ((args and args.model_init_kwargs) or {})
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    with whole_loading():
        return load(model, **options), tokenizer or tokenizer_at(model)
