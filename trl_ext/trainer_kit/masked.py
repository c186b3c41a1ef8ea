"""Reductions over real tokens, of one process or of all of them.

`B` rows, `T` tokens; a mask is 1 on real tokens. With an `accelerator`, sums run over every process, so that each
of them sees the same mean; without one, over the tensor at hand.
"""

import torch
from accelerate import Accelerator
from torch import Tensor


def masked_sums(*values: Tensor, mask: Tensor, accelerator: Accelerator | None = None) -> Tensor:
    """Σ of each of the tensors over real tokens, and their number last: `(len(values) + 1,)`, in float32."""
    keep = mask.bool()
    sums = torch.stack([*(value.float().masked_fill(~keep, 0.0).sum() for value in values), keep.sum().float()])
    return sums if accelerator is None else accelerator.reduce(sums, reduction="sum")


def masked_mean(values: Tensor, mask: Tensor, accelerator: Accelerator | None = None) -> Tensor:
    """Mean over real tokens, a scalar; 0 where there is none.

    >>> masked_mean(torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1, 1, 0]]))
    tensor(2.)
    """
    total, count = masked_sums(values, mask=mask, accelerator=accelerator)
    return total / count.clamp(min=1.0)


def masked_variance(values: Tensor, mask: Tensor, accelerator: Accelerator | None = None) -> Tensor:
    """Mean squared distance from the mean over real tokens (biased), a scalar; 0 where there is none."""
    return masked_mean((values - masked_mean(values, mask, accelerator)).square(), mask, accelerator)


def masked_whiten(values: Tensor, mask: Tensor, accelerator: Accelerator | None = None) -> Tensor:
    """Shift and scale so that real tokens have mean 0 and variance 1; masked ones become 0.

        x̂ = (x − mean) / √(var + 1e-8)

    Equal values, and a single one, become 0: they say nothing about what is better than the rest.

    Args:
        values: `(B, T)`.
        mask: `(B, T)`, 1 on real tokens.
        accelerator: Whose processes share mean and variance; None: this tensor alone.
    """
    centred = values - masked_mean(values, mask, accelerator)
    whitened = centred * torch.rsqrt(masked_variance(values, mask, accelerator) + 1e-8)
    return whitened.masked_fill(~mask.bool(), 0.0)
