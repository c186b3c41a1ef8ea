"""The trunk of a causal LM, and the model's own way from the trunk's states to logits.

`model` is one without an adapter around it (`passes.under_adapter`); adapters in its layers, its head's too, take part.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel


def logits_of(states: Tensor, model: PreTrainedModel) -> Tensor:
    """What the model's own `forward` makes of its trunk's last hidden states, `(…, …, H)`: head, scale, soft cap and all."""
    trunk = model.get_decoder()
    ids = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
    own = vars(trunk).get("forward")
    trunk.forward = lambda *args, **kwargs: TrunkOutput(states)
    try:
        return model.forward(input_ids=ids, use_cache=False).logits
    finally:
        del trunk.forward
        if own is not None:
            trunk.forward = own


class TrunkOutput:
    """Any trunk's output: hidden states, and None for all that an architecture may add."""

    def __init__(self, states: Tensor):
        self.last_hidden_state = states

    def __getitem__(self, index: int) -> Tensor:
        return self.last_hidden_state

    def __getattr__(self, name: str) -> None:
        return None
