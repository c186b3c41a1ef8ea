"""The shape of any causal language model that transformers knows, counted on a copy that has no weights.

The copy is built from the configuration on torch's meta device, where a tensor is its shape alone: a 70B in half a second.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from trl_ext.memory_planning.layer_kinds import Layer, ModelShape
from trl_ext.memory_planning.layer_reading import layer_of, linears_of
from trl_ext.memory_planning.plan_known_models import windows_of
from trl_ext.trainer_kit.loading import whole_loading

BUILD_ERRORS = (ValueError, TypeError, AttributeError, RuntimeError, ImportError, ArithmeticError, LookupError)
QUANTISED = (nn.Linear, Conv1D)  # what bitsandbytes replaces: these, and no class of their kind


def counted_shape(config: PreTrainedConfig, *, name: str, call: str) -> ModelShape:
    """The shape of the model that a configuration describes; of one that sees images, its text part.

    Raises:
        ValueError: For an encoder, an encoder–decoder, or what transformers cannot build.
    """
    text = config.get_text_config(decoder=True)
    _check_decoder(config, text, name, call)
    model = _without_weights(text, name, call)
    modules = _layers(model, text, name, call)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    windows, hidden = windows_of(text.to_dict(), len(modules)), embedding.shape[1]
    layers = [layer_of(module, window, model.config, hidden) for module, window in zip(modules, windows, strict=True)]
    tied = head is None or head.weight is embedding
    everything = sum(parameter.numel() for parameter in model.parameters())
    quantised = any(type(part) in QUANTISED for module in modules for part in linears_of(module))
    refused = not _takes_adapter(model)  # from here on its linear layers are wrapped
    return ModelShape(
        name,
        vocab=embedding.shape[0],
        hidden=hidden,
        intermediate=max(layer.inner for layer in layers),
        layers=len(layers),
        heads=max(layer.heads for layer in layers),
        kv_heads=max(layer.kv_heads for layer in layers),
        head_dim=max(layer.queries // max(layer.heads, 1) for layer in layers),
        tied=tied,
        windows=tuple(layer.window for layer in layers),
        counted=tuple(_adapted(modules, layers, refused)),
        rest=everything - sum(layer.params for layer in layers) - embedding.numel() * (1 if tied else 2),
        refuses_adapter=refused,
        refuses_bits=not quantised,
    )


def _check_decoder(config: PreTrainedConfig, text: PreTrainedConfig, name: str, call: str) -> None:
    """Raise a ValueError for what is no decoder of text."""
    if getattr(config, "is_encoder_decoder", False):
        kind = "is an encoder–decoder"
    elif text.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(text, "is_decoder", False):
        kind = "is an encoder"
    elif type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "has no causal language model in transformers"
    else:
        return
    raise ValueError(
        f"{call}(model={name!r}): expected a decoder of text, and {config.model_type!r} {kind}. Give a causal language "
        "model."
    )


@contextmanager
def _on_meta() -> Iterator[None]:
    with torch.device("meta"), whole_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _without_weights(config: PreTrainedConfig, name: str, call: str) -> PreTrainedModel:
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):  # its sizes count, not how a checkpoint is stored
        del config.quantization_config
    try:
        with _on_meta():
            return AutoModelForCausalLM.from_config(config)
    except BUILD_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{call}(model={name!r}): transformers cannot build {config.model_type!r} from this configuration "
            f"({reason}). Mend its config.json."
        ) from error


def _layers(model: PreTrainedModel, config: PreTrainedConfig, name: str, call: str) -> list[nn.Module]:
    """The decoder's layers: the first list of as many modules as it has layers, or the longest."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise ValueError(
            f"{call}(model={name!r}): found no list of layers in {type(model).__name__}, whose activations could be "
            "counted. Pass a trl_ext.memory_planning.model_shapes.ModelShape."
        )
    wanted = getattr(config, "num_hidden_layers", None)
    return next((found for found in lists if len(found) == wanted), max(lists, key=len))


def _takes_adapter(model: PreTrainedModel) -> bool:
    """Whether PEFT puts a LoRA of rank 1 on all linear layers, which changes the model; not on state-space layers."""
    try:
        with _on_meta():
            get_peft_model(model, LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM"))
    except ValueError:
        return False
    return True


def _adapted(modules: list[nn.Module], layers: list[Layer], refused: bool) -> Iterator[Layer]:
    """The layers, with the weights of their LoRA; where PEFT refuses it, all linear layers are taken to have one."""
    for module, layer in zip(modules, layers, strict=True):
        added = {name: parameter.numel() for name, parameter in module.named_parameters() if "lora_" in name}
        adapted = any("experts" in name for name in added)
        experts = layer.experts and replace(layer.experts, adapted=adapted and layer.experts.params > 0)
        adapter = sum(map(sum, layer.linears)) if refused else sum(added.values())
        yield replace(layer, adapter=adapter, experts=experts)
