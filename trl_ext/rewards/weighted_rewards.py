"""From samples to scores, by rewards in TRL's protocol. `n` samples at a time."""

import asyncio
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trl_ext.rewards.checked_reward import distinct_names, finite_number
from trl_ext.sequences.samples import Sample
from trl_ext.trainer_kit.seeds import seeded


@dataclass
class Scorer:
    """Weighs rewards to one score per sample.

        score = Σ weight · reward over the rewards that apply (not None); None where none with a weight does, or
                where one is no finite number

    Args:
        rewards: Callables in TRL's protocol, sync or async, which check their answers themselves.
        weights: One per reward; 0 watches a reward without counting it.
        seed: Of random numbers that a reward draws; each part has its own, so that a resumed run scores alike.
        metrics: What the rewards log by `log_metric`, mean over parts.
        trainer_state: Gives what rewards get under that name.
    """

    rewards: list[Callable]
    weights: list[float]
    seed: int = 0
    metrics: dict[str, list[float]] = field(default_factory=dict)
    trainer_state: Callable[[], Any] = lambda: None

    def __post_init__(self):
        if len(self.weights) != len(self.rewards):
            raise ValueError(
                f"reward_weights={self.weights}: expected one per reward function ({len(self.rewards)}), got "
                f"{len(self.weights)}."
            )
        self.weights = [float(weight) for weight in self.weights]

    @property
    def names(self) -> list[str]:
        """The rewards' names, told apart by a number where two are alike."""
        return distinct_names([reward.__name__ for reward in self.rewards])

    def columns(self, samples: list[Sample], columns: dict[str, list], *, part: int) -> dict[str, list[float | None]]:
        """`reward/<name>` of each reward and `score`, each with one value per sample.

        Args:
            samples: With all samples of a prompt together, so that rewards read each prompt once.
            columns: The data set's other columns, one value per sample.
            part: Number of the part.
        """
        arguments = columns | {
            "prompts": [sample["prompt"] for sample in samples],
            "completions": [sample["completion"] for sample in samples],
            "completion_ids": [sample["completion_ids"] for sample in samples],
            "completion_ended": [sample["ended"] for sample in samples],
            "trainer_state": self.trainer_state(),
            "log_metric": self._log_metric,
            "log_extra": lambda name, values: None,
        }
        with seeded(self.seed + part):
            rewards = call_all(self.rewards, arguments)
        scores = [self._weighted(row) for row in zip(*rewards, strict=True)]
        self._warn_of_invalid(samples, rewards)
        return {f"reward/{name}": row for name, row in zip(self.names, rewards, strict=True)} | {"score": scores}

    def _weighted(self, rewards: tuple[float | None, ...]) -> float | None:
        counted = [w * r for w, r in zip(self.weights, rewards, strict=True) if w != 0 and r is not None]
        if not counted or any(map(math.isnan, counted)):  # NaN is kept by `invalid_scores="drop"`
            return None
        return sum(counted)

    def _warn_of_invalid(self, samples: list[Sample], rewards: list[list[float | None]]) -> None:
        for name, row in zip(self.names, rewards, strict=True):
            bad = [i for i, reward in enumerate(row) if reward is not None and math.isnan(reward)]
            if bad:
                first = samples[bad[0]]
                warnings.warn(
                    f"{len(bad)} of {len(samples)} samples of this part have no finite score by {name!r} and are left "
                    f"out, the first is row {first['row']}, sample {first['sample']}: {first['completion']!r}",
                    stacklevel=2,
                )

    def _log_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(name, []).append(float(value))


def check_weights(weights: Sequence[float] | None, count: int, *, given: str, each: str = "reward function") -> None:
    """Raise a ValueError for weights that are not one finite number per reward, or of which none counts.

    Args:
        weights: One per reward; None: all 1.
        count: How many rewards there are.
        given: Who was given which weights, for the message.
        each: What a reward is called there.
    """
    if weights is None:
        return
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise ValueError(f"{given}: expected a list with one number per {each} ({count}).")
    if len(weights) != count:
        raise ValueError(f"{given}: expected one per {each} ({count}), got {len(weights)}.")
    bad = [weight for weight in weights if finite_number(weight) is None]
    if bad:
        raise ValueError(f"{given}: expected finite numbers, got {bad[0]!r}. Give 0 for a reward that only watches.")
    if not any(weights):
        raise ValueError(f"{given}: expected one that is not 0, or nothing gets a score. Leave it out for all 1.")


def call_all(rewards: list[Callable], arguments: dict[str, Any]) -> list[list[float | None]]:
    """Every reward's answers; async ones run together."""

    async def gather() -> list:
        return await asyncio.gather(*(reward(**arguments) for reward in rewards if _is_async(reward)))

    together: Iterator[list] = iter([])
    if any(map(_is_async, rewards)):  # in a thread of their own: a notebook's has a loop that runs already
        with ThreadPoolExecutor(max_workers=1) as thread:
            together = iter(thread.submit(asyncio.run, gather()).result())
    return [next(together) if _is_async(reward) else reward(**arguments) for reward in rewards]


def _is_async(reward: Callable) -> bool:
    return inspect.iscoroutinefunction(reward)


def weighted_scores(rewards: Tensor, weights: Tensor) -> Tensor:
    """Σ weight · reward over the functions that apply to a completion, `(N,)`; NaN where none with a weight does.

    >>> nan = float("nan")
    >>> weighted_scores(torch.tensor([[1.0, nan], [1.0, 2.0], [nan, nan]]), torch.tensor([1.0, 0.5]))
    tensor([1., 2., nan])

    Args:
        rewards: `(N, F)`.
        weights: `(F,)`.

    Raises:
        ValueError: If no completion has a score, or one is beyond all numbers.
    """
    counted = weights.to(rewards.device) != 0  # what is only watched does not make a score
    unscored = rewards[:, counted].isnan().all(1)
    if unscored.all():
        raise ValueError(
            f"PPOTrainer: no reward function scored any of the {len(rewards)} completions of this batch (all returned "
            "None), so there is nothing to learn from. Make one of them apply to every batch."
        )
    scores = (rewards * weights.to(rewards)).nansum(1).masked_fill(unscored, torch.nan)
    if scores.isinf().any():
        row = int(scores.isinf().nonzero()[0])
        raise ValueError(
            f"PPOTrainer: reward_weights={weights.tolist()} times the rewards {rewards[row].tolist()} of row {row} is "
            "beyond the largest number (float32). Give smaller weights, or scale the rewards."
        )
    return scores
