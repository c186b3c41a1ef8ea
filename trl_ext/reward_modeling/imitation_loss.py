"""The imitation term: how well the reward model's trunk still predicts the chosen completion.

Shapes: `B` pairs, `T` columns of the padded batch, `H` hidden size, `V` vocabulary, `N` tokens that are imitated.
"""

from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from trl_ext.reward_modeling.vocabulary_head import VocabularyHead
from trl_ext.sequences.log_probs import in_chunks

CHUNK_LOGITS = 2**24  # 64 MiB in fp32, which are there once


def completion_targets(attention_mask: Tensor, prompt_lengths: Tensor) -> Tensor:
    """Where the tokens stand that the imitation loss predicts: the completion's own, its EOS too, never a pad.

    Real tokens are counted, not columns, so padding may be on either side. The first token of a sequence has nothing
    before it to be predicted from, and is none of them.

    >>> completion_targets(torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]), torch.tensor([1, 2])).int()
    tensor([[0, 1, 1, 0],
            [0, 0, 0, 1]], dtype=torch.int32)

    Args:
        attention_mask: `(B, T)`, 1 on real tokens.
        prompt_lengths: Tokens before each completion, `(B,)`.

    Returns:
        `(B, T)` booleans.
    """
    position = attention_mask.cumsum(1)  # the first real token is number 1
    return attention_mask.bool() & (position > prompt_lengths.clamp(min=1).unsqueeze(1))


def completion_nll(hidden_states: Tensor, input_ids: Tensor, targets: Tensor, head: VocabularyHead) -> Tensor:
    """Negative log-likelihood of each target under the frozen vocabulary head r′.

        NLL_t = −log softmax(s · (W h_{t−1} + b))[y_t]

    Its gradient moves the trunk only: W and b are a fixed read-out. Only the states that predict a target are
    multiplied with W, and those in chunks, so that the logits are never whole in memory.

    Args:
        hidden_states: What the `score` head reads, `(B, T, H)`, with gradient.
        input_ids: `(B, T)`.
        targets: `(B, T)` booleans, never True in the first column.
        head: W `(V, H)`, b `(V,)` or None, and the factor s.

    Returns:
        `(N,)` in float32, one term per target, in nats; the caller averages.
    """
    predicted = targets[:, 1:]
    states = hidden_states[:, :-1][predicted.to(hidden_states.device)]
    weight, bias = head.on(states.device, _autocast_dtype(states.device))  # once, not once a chunk
    states = states.to(weight.dtype) * head.scale
    bias = None if bias is None else bias * head.scale
    labels = input_ids[:, 1:][predicted].to(states.device)
    return -in_chunks(partial(_read, weight=weight, bias=bias), states, labels, rows=CHUNK_LOGITS // head.size)


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast multiplies in on that device; None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def _read(states: Tensor, labels: Tensor, *, weight: Tensor, bias: Tensor | None) -> Tensor:
    return FrozenReadout.apply(states, labels, weight, bias)


class FrozenReadout(torch.autograd.Function):
    """log p of each label under weights that are not trained; the gradient is made with it, while the logits are there.

        log p = log softmax(W h + b)[y]        ∂ log p / ∂h = Wᵀ (onehot(y) − p)

    Two products with W, as many as with logits that are held: a checkpoint takes three.
    """

    @staticmethod
    def forward(ctx, states: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`(n,)` in float32, of states `(n, H)` and labels `(n,)`."""
        logits = linear(states, weight, bias).float()  # what becomes of it takes its place: no second is held
        logits -= logits.amax(1, keepdim=True)
        chosen = logits.gather(1, labels.unsqueeze(1))
        total = logits.exp_().sum(1, keepdim=True)
        chosen -= total.log()
        if ctx.needs_input_grad[0]:
            surprise = logits.div_(total).scatter_(1, labels.unsqueeze(1), chosen.expm1())  # p − onehot(y)
            ctx.save_for_backward(-(surprise.to(weight.dtype) @ weight))
        return chosen.squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """That of the states, each row of which has made one number."""
        (slope,) = ctx.saved_tensors
        return grad.unsqueeze(1).to(slope.dtype) * slope, None, None, None
