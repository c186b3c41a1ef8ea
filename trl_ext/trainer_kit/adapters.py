"""Adapters beside TRL: taken as they are, and kept in full precision."""

import torch
from peft import PeftConfig, PeftModel
from peft.utils import TrainableTokensWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from trl_ext.trainer_kit.passes import under_adapter
from trl_ext.trainer_kit.trl_versions import reads_bare_head


def trains_adapter(model: str | PreTrainedModel | PeftModel, peft_config: PeftConfig | None) -> bool:
    """Whether a trainer that is given these trains an adapter, rather than all weights."""
    return peft_config is not None or isinstance(model, PeftModel)


def adapter_tensors(model: str | PreTrainedModel | PeftModel, *, trainer: str) -> dict[str, Tensor]:
    """The trainable tensors of a model that comes with an adapter; none for one that gets a new adapter.

    Raises:
        ValueError: If the adapter is frozen; it names `trainer`.
    """
    if not isinstance(model, PeftModel):
        return {}
    tensors = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not tensors:
        raise ValueError(
            f"{trainer}(model=PeftModel): the adapter is frozen, so there is nothing to train. Load it with "
            "PeftModel.from_pretrained(…, is_trainable=True)."
        )
    return tensors


def keep_adapters_in_fp32(model: PreTrainedModel | PeftModel, originals: dict[str, Tensor]) -> None:
    """Undo TRL's cast of adapters to bf16 on a quantised base, where steps below 2⁻⁸ of a weight are lost.

    Args:
        model: The model after TRL's trainer took it.
        originals: Its `adapter_tensors` from before, with the digits that the cast has cut off.
    """
    if not (getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False)):
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = originals.get(name, parameter.data).to(parameter.device, torch.float32)


def keep_4_bit_layout(model: nn.Module) -> None:
    """Leave 4-bit weights as training reads them, also in eval mode.

    On CPUs with AVX-512 for bf16, bitsandbytes would repack them there, for good: with scales that are rounded, and in
    products through which no gradient passes.
    """
    for layer in model.modules():
        if "support_avx512bf16_for_cpu" in vars(layer):
            layer.support_avx512bf16_for_cpu = False


@torch.no_grad()
def complete_reference(model: PreTrainedModel | PeftModel) -> None:
    """Give TRL's frozen copy of an adapter, `ref`, the rows of tokens that are trained one by one, which TRL does not copy."""
    if not isinstance(model, PeftModel) or "ref" not in model.peft_config:
        return
    for name, parameter in model.named_parameters():
        if name.endswith(".default"):
            model.get_parameter(f"{name.removesuffix('default')}ref").copy_(parameter)


def check_head(model: PreTrainedModel | PeftModel, *, trainer: str) -> None:
    """Raise a ValueError for tokens that are trained one by one in a vocabulary head which is the embedding.

    TRL reads log-probabilities off the head's own weights, while sampling goes through the trained rows; what else an
    adapter may do to a head it refuses itself.
    """
    if reads_bare_head() and isinstance(under_adapter(model).get_output_embeddings(), TrainableTokensWrapper):
        raise ValueError(
            f"{trainer}(model=PeftModel): trainable_token_indices of a model whose vocabulary head is its embedding, which "
            "this version of TRL reads without them. Train the embedding whole, by LoraConfig(modules_to_save="
            "['embed_tokens'])."
        )


def loaded_bits(base: nn.Module) -> int | None:
    """8 or 4 for a model that bitsandbytes has loaded, else None."""
    loaded = {8: "is_loaded_in_8bit", 4: "is_loaded_in_4bit"}
    return next((bits for bits, note in loaded.items() if getattr(base, note, False)), None)
