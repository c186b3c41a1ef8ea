"""The imitation term: how well the reward model's trunk still predicts the chosen completion.

Shapes: `B` pairs, `T` columns of the padded batch, `H` hidden size, `V` vocabulary, `N` tokens that are imitated.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear_cross_entropy

from trl_ext.reward_modeling.vocabulary_head import VocabularyHead


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
    weight, bias = head.on(states.device)
    return linear_cross_entropy(
        states.to(weight.dtype) * head.scale,
        weight,
        input_ids[:, 1:][predicted].to(states.device),
        linear_bias=None if bias is None else bias * head.scale,
        reduction="none",
        options=torch.nn.LinearCrossEntropyOptions(),
    ).float()
