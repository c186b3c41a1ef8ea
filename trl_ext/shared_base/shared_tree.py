"""Module trees over the tensors of one model: modules, hooks and modes of their own, weights in common."""

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
from transformers.utils import is_bitsandbytes_available

from trl_ext.trainer_kit.adapters import keep_4_bit_layout
from trl_ext.trainer_kit.offloading import tensor_slots

# What transformers notes on a model that it has loaded quantised, or onto a device.
LOADING_NOTES = (
    "hf_device_map",
    "hf_quantizer",
    "is_loaded_in_4bit",
    "is_loaded_in_8bit",
    "is_quantized",
    "quantization_method",
)


class ScoreHead(nn.Linear):
    """One number per hidden state, in float32 also inside autocast: 16 bits are too coarse for a score or a return."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            return super().forward(hidden_states.to(self.weight.dtype))


def quantised_linears(model: nn.Module) -> list[nn.Module]:
    """bitsandbytes' 8-bit and 4-bit layers of a model."""
    if not is_bitsandbytes_available():
        return []
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return [module for module in model.modules() if isinstance(module, Linear4bit | Linear8bitLt)]


def make_shareable(model: PreTrainedModel) -> None:
    """Freeze a model and bring it into the state in which its tensors can be shared, in eval mode.

    An 8-bit weight moves to its final place, which bitsandbytes does in the first forward pass. A 4-bit weight keeps
    its layout, or every other tree would read what its own mode does not expect.
    """
    model.requires_grad_(False).eval()
    keep_4_bit_layout(model)
    for layer in quantised_linears(model):
        if hasattr(layer, "init_8bit_state") and layer.weight.CB is not None:
            layer.init_8bit_state()


def tree_over(module: nn.Module) -> nn.Module:
    """A copy of a module whose weights and buffers are the very same tensors.

    Only the small biases of quantised layers are copied: bitsandbytes casts them in place to what it is fed.
    """
    layers = quantised_linears(module)
    cast_in_place = {id(layer.bias) for layer in layers if layer.bias is not None}
    shared = [tensor for tensor in chain(module.parameters(), module.buffers()) if id(tensor) not in cast_in_place]
    shared += [layer.state if hasattr(layer, "state") else layer.quant_state for layer in layers]
    return copy.deepcopy(module, {id(part): part for part in shared})


def scorer_over(model: PreTrainedModel, *, seed: int | None) -> PreTrainedModel:
    """A sequence-classification model with one label over the trunk of a causal LM, and a new `score` head in float32.

    Args:
        model: The causal LM.
        seed: Of the head's weights, drawn as transformers does; None: zeros.

    Raises:
        ValueError: If transformers has no such model with a `score` head over the same trunk.
    """
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    scorer = _empty_scorer(config)
    trunk_type = type(model.base_model)
    if scorer is None or type(scorer.base_model) is not trunk_type or "score" not in dict(scorer.named_children()):
        raise ValueError(
            f"SharedBase: {type(model).__name__} has no sequence-classification model with a `score` head over its "
            f"trunk {trunk_type.__name__}, so it can carry no reward or value model. Take a text-only decoder, e.g. of "
            "the Llama, Mistral, Qwen or Gemma family."
        )
    setattr(scorer, scorer.base_model_prefix, tree_over(model.base_model))
    scorer.score = _score_head(scorer.score.in_features, config, seed).to(model.device)
    for name in LOADING_NOTES:
        if name in vars(model):
            setattr(scorer, name, vars(model)[name])
    return scorer.eval()


def _empty_scorer(config) -> PreTrainedModel | None:
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None
    with torch.device("meta"):
        return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config)


def _score_head(width: int, config, seed: int | None) -> ScoreHead:
    head = ScoreHead(width, 1, bias=False, dtype=torch.float32)
    if seed is None:
        nn.init.zeros_(head.weight)
    else:
        deviation = getattr(config.get_text_config(), "initializer_range", 0.02)  # some architectures have none
        nn.init.normal_(head.weight, std=deviation, generator=torch.Generator().manual_seed(seed))
    return head.requires_grad_(False)


def storage_bytes(*modules: nn.Module, besides: tuple[nn.Module, ...] = ()) -> int:
    """Bytes of all storages that the modules keep tensors in, each counted once, quantised parts included.

    Args:
        modules: Trees, whose storages may be shared.
        besides: Modules whose storages are not counted.
    """
    known, counted = _storages(*besides), _storages(*modules)
    return sum(size for key, size in counted.items() if key not in known)


def _storages(*modules: nn.Module) -> dict[int, int]:
    slots = [slot for module in modules for slot in tensor_slots(module)]
    storages = [getattr(*slot).untyped_storage() for slot in slots]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}
