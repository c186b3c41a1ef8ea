"""Lend the card to somebody else: a model's weights wait in the computer's memory meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import is_bitsandbytes_available

Slot = tuple[Any, str]  # an object and the name of its attribute that is a tensor


@contextmanager
def off_the_card(model: nn.Module) -> Iterator[None]:
    """Move all weights to the CPU and afterwards, also after an error, back to where each was.

    Also what bitsandbytes keeps beside its 8-bit and 4-bit weights, which transformers' `.to()` refuses to move.
    Optimiser states and gradients stay. A model that is on the CPU is left alone.

    Args:
        model: Of any kind, with or without an adapter; must not be called meanwhile.
    """
    slots = [slot for slot in tensor_slots(model) if getattr(*slot).device.type != "cpu"]
    devices = [getattr(*slot).device for slot in slots]
    try:
        replace_storages(slots, lambda storage, slot: storage.cpu())
        if slots:
            torch.cuda.empty_cache()
        yield
    finally:
        homes = dict(zip(map(_key, slots), devices, strict=True))
        replace_storages(slots, lambda storage, slot: storage.to(device=homes[_key(slot)]))


def tensor_slots(model: nn.Module) -> list[Slot]:
    """Every place in which a model keeps a tensor: parameters, buffers, and the parts of quantised weights."""
    slots: list[Slot] = [(parameter, "data") for parameter in model.parameters()]
    slots += [(buffer, "data") for buffer in model.buffers()]
    if is_bitsandbytes_available():
        slots += _quantised_slots(model)
    return [slot for slot in slots if getattr(*slot) is not None and getattr(*slot).numel()]


def _quantised_slots(model: nn.Module) -> list[Slot]:
    from bitsandbytes.nn import Int8Params, Linear8bitLt, Params4bit

    holders = [parameter for parameter in model.parameters() if isinstance(parameter, Int8Params)]
    holders += [module.state for module in model.modules() if isinstance(module, Linear8bitLt)]
    slots: list[Slot] = [(holder, name) for holder in holders for name in ("CB", "SCB")]
    for parameter in model.parameters():
        state = parameter.quant_state if isinstance(parameter, Params4bit) else None
        if state is not None:
            slots += [(state, name) for name in ("absmax", "code", "offset")]
            slots += [(state.state2, name) for name in ("absmax", "code")] if state.nested else []
    return slots


def replace_storages(slots: list[Slot], new: Callable[[torch.UntypedStorage, Slot], torch.UntypedStorage]) -> None:
    """Give each tensor a new storage; tensors that shared one share the new one.

    Args:
        slots: Where the tensors are; one may be named several times, as by each tree over the same weights.
        new: From a storage, and one of the slots that use it, to the new storage.
    """
    replaced: dict[int, torch.UntypedStorage] = {}
    for slot in {_key(slot): slot for slot in slots}.values():
        tensor: Tensor = getattr(*slot)
        old = tensor.untyped_storage()
        if old.data_ptr() not in replaced:
            replaced[old.data_ptr()] = new(old, slot)
        storage = replaced[old.data_ptr()]
        empty = torch.empty(0, dtype=tensor.dtype, device=storage.device)
        setattr(*slot, empty.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride()))


def _key(slot: Slot) -> tuple[int, str]:
    return id(slot[0]), slot[1]
