"""A model that FSDP2 has cut, whole on every process for a while: to sample from it, each process at its own pace.

What FSDP2 wraps gathers its weights layer by layer in every pass, in all processes at once. One that samples longer than the
others would wait for ever, so that it samples from a plain copy, which nothing wraps.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from trl_ext.trainer_kit.sharding import as_cut, whole


class WholeCopy:
    """A copy of a model, without weights, that has the model's for the time of a block.

    Memory, inside the block: all weights, in the precision that they are trained in, on each process's device, beside its
    share of the cut ones. Outside: the model's buffers.

    Args:
        model: Before it is cut. Methods that were put on it (TRL's own `forward`) are those of its class again in the copy.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        empty = {id(p): nn.Parameter(p.new_empty(0), requires_grad=p.requires_grad) for p in model.parameters()}
        self.copy = copy.deepcopy(model, empty)
        for module in self.copy.modules():
            vars(module).pop("forward", None)

    @contextmanager
    def filled(self) -> Iterator[nn.Module]:
        """The copy with the model's weights; all processes must ask for it. The model itself, where it is not cut."""
        if not isinstance(self.model, FSDPModule):
            yield self.model
            return
        try:
            with torch.no_grad():
                self._fill()
            yield self.copy
        finally:
            for parameter in self.copy.parameters():
                parameter.data = parameter.new_empty(0)

    def _fill(self) -> None:
        model = as_cut(self.model)
        for name, parameter in self.copy.named_parameters():
            parameter.data = whole(model.get_parameter(name).detach())
        for name, buffer in self.copy.named_buffers():
            buffer.data = model.get_buffer(name)
