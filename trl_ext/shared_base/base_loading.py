"""Loading a base: how it is quantised, and what cannot be one."""

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel

from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.loading import loading
from trl_ext.trainer_kit.option_rules import Rule

INT8_THRESHOLD = 6.0  # of LLM.int8(), bitsandbytes' default


def quantisation(bits: int, dtype: str | torch.dtype, *, llm_int8_threshold: float) -> BitsAndBytesConfig:
    """bitsandbytes' settings: LLM.int8() with an outlier threshold, or NF4 with double quantisation."""
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=llm_int8_threshold)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def check_model(model: PreTrainedModel) -> None:
    """Raise a ValueError for a model that roles cannot share."""
    if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder:
        raise ValueError(
            f"SharedBase({type(model).__name__}): expected a causal LM of transformers without adapter. Give the model "
            "below the adapter, and the adapter's folder as init_from."
        )
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            f"SharedBase({type(model).__name__}): it has an adapter in its layers already. Load it anew, and give the "
            "adapter's folder as init_from."
        )
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"SharedBase({type(model).__name__}): it has no vocabulary head. Load it with AutoModelForCausalLM."
        )


def check_threshold(threshold: float, bits: int | None) -> float:
    """The outlier threshold as a number, or a ValueError for another, or one that was set without the 8 bits it is of."""
    call = "SharedBase.from_pretrained"
    threshold = checked(call, "llm_int8_threshold", threshold, float, Rule(0.0), default=INT8_THRESHOLD)
    if threshold != INT8_THRESHOLD and bits != 8:
        raise ValueError(
            f"{call}(llm_int8_threshold={threshold}, bits={bits}): it does nothing without bits=8. Set that, or leave it out."
        )
    return threshold


def check_bits(name: str, bits: int, **kwargs) -> None:
    """Raise a ValueError for other bits than there are, or a checkpoint that has some; `kwargs` are of its config."""
    if bits not in (4, 8):
        raise ValueError(f"SharedBase.from_pretrained(bits={bits!r}): expected 8, 4, or None for no quantisation.")
    with loading(f"SharedBase.from_pretrained({name!r})"):
        config = AutoConfig.from_pretrained(name, **kwargs)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"SharedBase.from_pretrained({name!r}, bits={bits}): the checkpoint is quantised already. Leave bits out, "
            "or name the checkpoint that it was made from."
        )
