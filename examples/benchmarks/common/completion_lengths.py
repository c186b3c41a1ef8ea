"""Completions of given lengths from a model that knows no end: at each step the end token gets the right probability.

    P(end at t | no end before t) = P(L = t) / P(L ≥ t)

So lengths follow a given distribution whoever samples, row by row, at temperature 1. Those beyond the limit are cut.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

FORMS = "uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA, geometric:MEAN, or a file of numbers"


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths.

    Args:
        shares: P(L = t) for t = 1 … T; what they lack of 1 is longer than T.
    """

    shares: tuple[float, ...]

    @property
    def hazards(self) -> list[float]:
        """P(L = t | L ≥ t) for t = 1 … T.

        >>> Lengths((0.5, 0.25)).hazards
        [0.5, 0.5]
        """
        left, hazards = 1.0, []
        for share in self.shares:
            hazards.append(min(share / left, 1.0) if left > 1e-9 else 1.0)
            left -= share
        return hazards

    def draw(self, source) -> int:
        """A length, at most T."""
        point = source.random()
        for t, share in enumerate(self.shares, start=1):
            point -= share
            if point < 0:
                return t
        return len(self.shares)


def lengths_from(text: str, *, limit: int) -> Lengths:
    """Read a distribution of lengths.

    Args:
        text: `uniform:LOW:HIGH`, `lognormal:MEDIAN:SIGMA`, `geometric:MEAN`, or the path of a file of numbers.
        limit: T, the longest completion.

    Raises:
        ValueError: If it is none of these.
    """
    name, *numbers = text.split(":")
    path = Path(text)
    try:
        if path.is_file():
            return _from_numbers([int(word) for word in path.read_text().split()], limit)
        below = {"uniform": _uniform, "lognormal": _lognormal, "geometric": _geometric}[name]
        cumulated = [0.0, *(below(t, *map(float, numbers)) for t in range(1, limit + 1))]
        return Lengths(tuple(max(b - a, 0.0) for a, b in pairwise(cumulated)))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"--lengths {text}: expected {FORMS}, with positive numbers. Write it like one.") from error


def _uniform(t: float, low: float, high: float) -> float:
    if not 1 <= low <= high:
        raise ValueError
    return min(max((t - low + 1) / (high - low + 1), 0.0), 1.0)


def _lognormal(t: float, median: float, sigma: float) -> float:
    return 0.5 * (1 + math.erf(math.log((t + 0.5) / median) / (sigma * math.sqrt(2))))


def _geometric(t: float, mean: float) -> float:
    if mean < 1:
        raise ValueError
    return 1 - (1 - 1 / mean) ** t


def _from_numbers(numbers: list[int], limit: int) -> Lengths:
    if not numbers or min(numbers) < 1:
        raise ValueError
    return Lengths(tuple(numbers.count(t) / len(numbers) for t in range(1, limit + 1)))


@contextmanager
def ending(policy: PeftModel, lengths: Lengths, *, end_id: int) -> Iterator[None]:
    """Inside the block, what is sampled from the policy ends by the distribution.

    Args:
        policy: Whose logits are changed, in passes that write to a cache.
        lengths: The distribution.
        end_id: The end token.
    """
    hazards, start = lengths.hazards, 0

    def hook(module, args, kwargs, output):
        nonlocal start
        read = kwargs["past_key_values"].get_seq_length()
        if kwargs["input_ids"].size(1) == read:  # the prompts
            start = read
        set_end(output.logits[:, -1], hazards[min(read - start, len(hazards) - 1)], end_id)

    handle = policy.get_base_model().register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def set_end(logits: Tensor, hazard: float, end_id: int) -> None:
    """Give the end token this probability, in place; the others keep their proportions. Logits are `(B, V)`."""
    logits[:, end_id] = -torch.inf
    if hazard >= 1:
        logits.fill_(-torch.inf)
        logits[:, end_id] = 0.0
    elif hazard > 0:
        odds = math.log(hazard / (1 - hazard))
        logits[:, end_id] = (logits.float().logsumexp(-1) + odds).to(logits.dtype)
