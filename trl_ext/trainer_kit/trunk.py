"""The trunk of a causal LM, and the model's own way from the trunk's states to logits.

`model` is one without an adapter around it (`passes.under_adapter`); adapters in its layers, its head's too, take part.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trl_ext.trainer_kit.passes import as_one_matrix


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


@contextmanager
def answering(model: PreTrainedModel, whole: nn.Module, read: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, `whole` answers its next call with `read(states)` where its logits would be.

    The call itself stays the usual one, so that what wraps the model sees its trunk and head in what comes back.

    Args:
        model: Whose trunk's states, `(B, L, H)`, are read.
        whole: The model, or it with an adapter around it.
        read: Makes of them what is wanted, by `logits_of` if it needs logits.
    """
    answers: list[Tensor] = []

    def behind_trunk(trunk, args, output):
        first.remove()  # `read` calls the trunk again
        answers.append(read(output.last_hidden_state))
        return TrunkOutput(as_one_matrix(output.last_hidden_state[:1, :1]))  # the least that the head can be given

    def behind_whole(whole, args, output):
        output.logits = answers.pop()

    first = model.get_decoder().register_forward_hook(behind_trunk)
    last = whole.register_forward_hook(behind_whole, prepend=True)  # FSDP's own hook looks for what needs a gradient
    try:
        yield
    finally:
        first.remove()
        last.remove()


class TrunkOutput:
    """Any trunk's output: hidden states, and None for all that an architecture may add."""

    def __init__(self, states: Tensor):
        self.last_hidden_state = states

    def __getitem__(self, index: int) -> Tensor:
        return self.last_hidden_state

    def __getattr__(self, name: str) -> None:
        return None
