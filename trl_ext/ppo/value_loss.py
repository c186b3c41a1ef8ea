"""What the critic is trained on.

Shapes: `B` completions, `T` tokens. Terms per token; the trainer takes their mean over real tokens.
"""

import torch
from torch import Tensor


def clipped_value_error(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """Squared error of the critic, blind to any gain from moving more than `clip` since the rollout.

        L_t = ½ max((V_t − R_t)², (clamp(V_t, V_old,t ± clip) − R_t)²)

    The max is pessimistic: a step that only looks good because it was large earns no credit.

    Args:
        values: Current predictions V, `(B, T)`, with gradient.
        old_values: Predictions made at rollout time, `(B, T)`.
        returns: Targets R, `(B, T)`.
        clip: Largest trusted move, in units of return.

    Returns:
        `(B, T)`, one term per token; the caller averages over real tokens.
    """
    trusted = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (trusted - returns).square())


def value_is_clipped(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """`(B, T)`, True where the clipped branch is the larger one, i.e. where the critic gets no gradient."""
    trusted = old_values + (values - old_values).clamp(-clip, clip)
    return (trusted - returns).square() > (values - returns).square()
