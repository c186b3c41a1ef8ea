"""Who samples is not quite the policy that is trained: what its log-probabilities say, and weights that correct for it.

Shapes: `B` completions of `T` tokens. A mask is 1 on tokens to learn from. A sampler's log-probabilities are natural ones, of
the tokens that it drew, by the distribution that it drew them from (temperature and truncation included); NaN is unknown.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from trl_ext.ppo.ppo_config import PPOConfig
from trl_ext.trainer_kit.config_checks import defaults_of
from trl_ext.trainer_kit.masked import masked_sums

ROUNDING = 1e-3  # by how much the logarithm of a probability may be above 0
CERTAIN = 1e-2  # nats per token; where the policy is surer than that, a sampler may have been certain


def sampling_weights(log_probs: Tensor, sampled: Tensor, *, cap: float) -> Tensor:
    """Truncated importance weights per token (Yao et al., 2025, "Your efficient RL framework secretly brings you off-policy RL
    training", https://fengyao.notion.site/off-policy-rl).

        w_t = min(exp(log π_old,t − log π_sampled,t), cap)

    What was drawn more often than the policy would have counts for less, and the other way round. The surrogate is
    weighted by way of its advantages, since w > 0: w · min(ρA, clip(ρ)A) = min(ρ · wA, clip(ρ) · wA).

    Args:
        log_probs: Of the policy when it had sampled, log π_old, `(B, T)`.
        sampled: Of the sampler, `(B, T)`.
        cap: Largest weight, 1 or more. Larger: less bias, more variance.

    Returns:
        `(B, T)`, without gradient; exactly 1 where both agree, and where `sampled` is NaN.
    """
    weights = (log_probs - sampled).detach().exp()
    return weights.masked_fill(sampled.isnan(), 1.0).clamp(max=cap)


def check_weight_cap(config: PPOConfig, *, weighs: bool) -> None:
    """Raise a ValueError for a cap of weights where there is nothing to weigh.

    Args:
        config: Of the run.
        weighs: Whether another than the policy samples, who may say how probable its tokens were.
    """
    cap = config.sampling_weight_cap
    if not weighs and cap != defaults_of(config)["sampling_weight_cap"]:
        raise ValueError(
            f"PPOConfig(sampling_weight_cap={cap}): it does nothing where the policy samples itself, or a generator without "
            "log-probabilities, as TransformersGenerator. Leave it out, or give PPOTrainer who samples instead, with "
            "log-probabilities."
        )


def read_log_probs(rows: Sequence | None, completions: Sequence[Sequence[int]], *, call: str) -> list | None:
    """A sampler's log-probabilities, one float per token, NaN where it gives None; None where it gives none at all.

    Raises:
        ValueError: For rows that are not a number, or None, per token.
    """
    if rows is None:
        return None
    if len(rows) != len(completions):
        raise ValueError(
            f"{call}: expected `logprobs` of {len(completions)} completions, got {len(rows)}. Give a row for each, or None."
        )
    return [
        _read_row(row, len(ids), f"{call}: row {i}")
        for i, (row, ids) in enumerate(zip(rows, completions, strict=True))
    ]


def _read_row(row: Sequence | None, tokens: int, call: str) -> list[float]:
    row = [None] * tokens if row is None else row
    if len(row) != tokens:
        raise ValueError(
            f"{call}: expected a log-probability for each of its {tokens} tokens, got {len(row)}. None stands for one that "
            "is not known."
        )
    try:
        return [math.nan if number is None else float(number) for number in row]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{call}: expected one log-probability per token, a number or None, got {row[0]!r}. Of a list of the likeliest "
            "tokens, give that of the token that was drawn."
        ) from error


def known_log_probs(
    sampled: Tensor, log_probs: Tensor, mask: Tensor, accelerator: Accelerator, *, call: str
) -> tuple[Tensor, int]:
    """What a sampler says, where it can be meant.

    Rows of zeros on all own tokens are placeholders, unless the policy was certain of them too: nothing that is drawn from
    several has probability 1 at each token.

    Args:
        sampled, log_probs: Of the sampler and of the policy, `(B, T)` each.
        call: What the numbers came in.

    Returns:
        `(B, T)`, NaN where unknown; and how many rows of all processes were placeholders.

    Raises:
        ValueError: In all processes, for numbers that are no logarithms of probabilities.
    """
    own = mask.bool() & ~sampled.isnan()
    unsure = (log_probs.abs() * own).sum(1) > CERTAIN * own.sum(1)
    placeholders = unsure & ~(own & (sampled != 0)).any(1)
    too_large = (own & (sampled > ROUNDING)).sum()
    large, empty = accelerator.reduce(torch.stack([too_large, placeholders.sum()]), reduction="sum").tolist()
    if large:
        raise ValueError(
            f"{call}: expected natural logarithms of probabilities, which are at most 0, as the sampler's log-probabilities; "
            f"{large} are above it. Give logarithms, or None where they are not known."
        )
    return sampled.masked_fill(placeholders.unsqueeze(1), math.nan), int(empty)


def gap_terms(
    sampled: Tensor, log_probs: Tensor, ref_log_probs: Tensor | None, *, cap: float | None
) -> dict[str, Tensor]:
    """How far the sampler is from the policy, per token, `(B, T)` each.

    sampling_kl             log π_sampled − log π_old: k1 of KL(sampler ‖ policy), nats
    sampling_weight         w, with a cap
    sampling_weight_capped  1[π_old / π_sampled > cap]
    to_policy               |log π_sampled − log π_old|
    moved                   |log π_old − log π_ref|, with a reference
    nearer_to_reference     |log π_sampled − log π_old| − |log π_sampled − log π_ref|
    """
    gap = sampled - log_probs
    terms = {"sampling_kl": gap, "to_policy": gap.abs()}
    if cap is not None:
        terms |= {"sampling_weight": sampling_weights(log_probs, sampled, cap=cap)}
        terms |= {"sampling_weight_capped": (-gap > math.log(cap)).float()}
    if ref_log_probs is not None:
        terms |= {"moved": (log_probs - ref_log_probs).abs()}
        terms |= {"nearer_to_reference": gap.abs() - (sampled - ref_log_probs).abs()}
    return terms


@dataclass(frozen=True)
class Mean:
    """A mean over so many tokens, and its standard error, were they independent."""

    value: float
    error: float
    tokens: int


def means(terms: dict[str, Tensor], mask: Tensor, accelerator: Accelerator) -> dict[str, Mean]:
    """Of terms per token, `(B, T)` each, over the real tokens of all processes; nothing where there is none.

    >>> means({"x": torch.tensor([[1.0, 3.0, 9.0]])}, torch.tensor([[1, 1, 0]]), Accelerator(cpu=True))
    {'x': Mean(value=2.0, error=1.0, tokens=2)}
    """
    squares = [term.square() for term in terms.values()]
    *sums, tokens = masked_sums(*terms.values(), *squares, mask=mask, accelerator=accelerator).tolist()
    if not tokens:
        return {}
    pairs = zip(sums[: len(terms)], sums[len(terms) :], strict=True)
    return {name: _mean(*pair, int(tokens)) for name, pair in zip(terms, pairs, strict=True)}


def _mean(total: float, squares: float, tokens: int) -> Mean:
    mean = total / tokens
    variance = max(squares / tokens - mean**2, 0.0)
    return Mean(mean, math.sqrt(variance / max(tokens - 1, 1)), tokens)
