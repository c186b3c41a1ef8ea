"""What every pass without training needs to know of a model: its mode, its parameters, its cache."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from trl_ext.trainer_kit.trl_versions import cache_argument


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """No dropout, and a cache beside gradient checkpointing, inside the block; afterwards each module as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def seen_in(module: nn.Module, take: Callable[[tuple, Any], Tensor]) -> Iterator[list[Tensor]]:
    """Collect `take(args, output)` of every pass through a module inside the block, with its gradient."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append(take(args, output)))
    try:
        yield seen
    finally:
        handle.remove()


def as_one_matrix(states: Tensor) -> Tensor:
    """A copy of some states, `(B, 1, H)`, whose rows lie one behind the other, for a vocabulary head to read.

    Of a slice with the strides of `(B, L, H)` and a frozen weight, as it is under an adapter, torch's `matmul` makes B
    products, on a CPU in 16 bits each with a copy of the weight: B heads of memory, and some 200 times the seconds. It
    looks at the strides themselves, so that `contiguous()`, which leaves a slice of one row as it is, is not enough.
    """
    return states.clone(memory_format=torch.contiguous_format)


@contextmanager
def states_as_one_matrix(model: nn.Module) -> Iterator[None]:
    """On a CPU, let the vocabulary head read its states as one matrix inside the block, where only the last ones are asked.

    For those transformers gives the head a slice. The numbers are the same.
    """
    head = under_adapter(model).get_output_embeddings()
    if head is None or under_adapter(model).device.type != "cpu":
        yield
        return
    handle = head.register_forward_pre_hook(lambda module, args: (as_one_matrix(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def under_adapter(model: nn.Module) -> nn.Module:
    """The model itself, in whose layers an adapter works."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def forward_parameters(model: PreTrainedModel | PeftModel) -> set[str]:
    """Names of what the forward pass of the model, or of the one under the adapter, takes."""
    return set(inspect.signature(under_adapter(model).forward).parameters)


def behind(cache: DynamicCache, model: PreTrainedModel | PeftModel) -> dict:
    """Arguments with which a model reads on behind what a cache holds, and adds to it."""
    return {cache_argument(under_adapter(model)): cache, "use_cache": True}


def caches_attention_only(model: PreTrainedModel | PeftModel) -> bool:
    """Whether all that a model keeps of what it has read are keys and values, whose rows can be copied and left out."""
    layers = {type(layer) for layer in DynamicCache(config=model.config).layers}
    return cache_argument(under_adapter(model)) is not None and not layers - {DynamicLayer, DynamicSlidingWindowLayer}


def can_share(module: nn.Module) -> bool:
    """Whether the model keeps keys and values only, which can be copied for each sequence with a beginning in common."""
    model = under_adapter(module)
    if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder:
        return False
    if isinstance(module, PeftModel) and module.active_peft_config.is_prompt_learning:
        return False
    return caches_attention_only(model)
