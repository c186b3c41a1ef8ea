"""What soft labels and ranked lists add to TRL's ranking loss, which stays as it is where there is neither.

Shapes: `N` completions of the batch's lists, `P` pairs.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def soft_label_term(lead: Tensor, probability: Tensor) -> Tensor:
    """What a soft label adds to −log σ(z): Secrets of RLHF, Part II (arXiv:2401.06080).

        −[p · log σ(z) + (1 − p) · log σ(−z)]  =  −log σ(z) + (1 − p) · z

    p = 1 adds exactly 0. The loss is least at z = log(p / (1 − p)). With a margin m, z = Δ − m in both terms: what the
    chosen completion leads by is what the rejected one is behind, so a pair that is turned round, with p → 1 − p and
    m → −m, has the same loss.

    Args:
        lead: z = r(chosen) − r(rejected) − margin, `(P,)`.
        probability: p that the chosen completion is the better, in [0, 1], `(P,)`.

    Returns:
        `(P,)`.
    """
    return (1 - probability) * lead


def label_agreement(lead: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
    """How many pairs are ranked as the likelier label has it, and how many have one: p = 1/2 is none.

    >>> label_agreement(torch.tensor([2.0, 2.0, 2.0]), torch.tensor([1.0, 0.3, 0.5]))
    (tensor(1), tensor(2))
    """
    right = torch.where(probability > 0.5, lead > 0, lead < 0) & (probability != 0.5)
    return right.sum(), (probability != 0.5).sum()


def ranked_pairs(list_of: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of a list's completions of which one is ranked before the other: ties are none.

    >>> ranked_pairs(torch.tensor([0, 0, 0]), torch.tensor([1, 2, 2]))
    (tensor([0, 0]), tensor([1, 2]))

    Args:
        list_of: Number of each completion's list, `(N,)`.
        ranks: Of each in its list, 1 is best, `(N,)`.

    Returns:
        better, worse: Places among the N, `(P,)` each.
    """
    before = (list_of[:, None] == list_of[None]) & (ranks[:, None] < ranks[None])
    better, worse = before.nonzero(as_tuple=True)
    return better, worse


def list_weights(list_of_pair: Tensor) -> Tensor:
    """With these, a mean over pairs is the mean over lists of each list's own mean, as in InstructGPT (arXiv:2203.02155).

        1/P Σ w_i · l_i  =  1/B Σ_lists 1/P_list Σ l_i          w_i = P / (B · P_list)

    >>> list_weights(torch.tensor([0, 0, 0, 1]))
    tensor([0.6667, 0.6667, 0.6667, 2.0000])

    Args:
        list_of_pair: Number of each pair's list, `(P,)`.

    Returns:
        `(P,)`, whose mean is 1.
    """
    _, list_of_pair, sizes = list_of_pair.unique(return_inverse=True, return_counts=True)
    return len(list_of_pair) / (len(sizes) * sizes[list_of_pair].float())


def weighting_term(chosen: Tensor, rejected: Tensor, weights: Tensor, centering: float | None) -> Tensor:
    """What unequal weights add to TRL's plain mean over pairs: Σ (w − 1) · l, of l = −log σ(Δ) + c · (r_w + r_l)².

    Args:
        chosen, rejected: Rewards, `(P,)` each.
        weights: `(P,)`.
        centering: c, `center_rewards_coefficient`.

    Returns:
        `(P,)`, exactly 0 where the weights are 1.
    """
    losses = -logsigmoid(chosen - rejected) + (centering or 0.0) * (chosen + rejected) ** 2
    return (weights - 1) * losses
