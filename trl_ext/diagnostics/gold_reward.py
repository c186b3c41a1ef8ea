"""A reward that judges what training does not see."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from trl_ext.rewards.reward_callables import Reward, reward_functions
from trl_ext.rewards.routed_product import RoutedProduct
from trl_ext.rewards.weighted_rewards import call_all
from trl_ext.trainer_kit.processes import is_main_process
from trl_ext.trainer_kit.seeds import seeded

UNHEARD = {"trainer_state": None, "log_metric": lambda *_: None, "log_extra": lambda *_: None}


class GoldReward:
    """Scores completions by a reward that training does not see, and says what is wrong with it.

    Args:
        reward: A function in TRL's protocol, a reward model, its path.
        call: Who was given it, for messages.
        max_completion_length: The trainer's, which an `R3Reward` takes as its L; None: not known.
    """

    def __init__(self, reward: Reward, *, call: str, max_completion_length: int | None = None):
        (self.function,) = reward_functions([reward], max_completion_length=max_completion_length, call=call)
        self.call, self.seen, self.warned = call, 0, False

    def scores(self, columns: dict[str, Any]) -> list[float | None]:
        """One per completion; drawing random numbers moves nobody else's."""
        with seeded(0):
            return call_all([self.function], columns | UNHEARD)[0]

    def check(self, gold: Sequence[float | None], proxy: Sequence[float | None]) -> bool:
        """Whether a look has any gold.

        Raises:
            ValueError: Where the first look has none. Of a later one it is warned, once.
        """
        there = [(a, b) for a, b in zip(gold, proxy, strict=True) if a is not None]
        if not there:
            said = f"{self.call}: the gold reward gave None for all {len(gold)} completions of a look"
            if not self.seen:
                raise ValueError(f"{said}, so there is nothing to compare. Give one that applies to these prompts.")
            self._warn(f"{said}, which is left out.")
            return False
        self.seen += 1
        if len({a for a, _ in there}) > 1 and all(a == b for a, b in there):
            self._warn(
                f"{self.call}: the gold reward gives what training is paid by, to each of {len(there)} completions: no "
                "gaming can be seen by it. Give another."
            )
        return True

    def _warn(self, text: str) -> None:
        if not self.warned and is_main_process():
            self.warned = True
            warnings.warn(f"{text} Said once.", stacklevel=3)


def check_unseen(gold: Reward, rewards: Sequence[object], weights: Sequence[float], *, call: str) -> None:
    """Raise a ValueError where training is paid by the very reward that is to be gold."""
    paid = [inner(reward) for reward, weight in zip(rewards, weights, strict=True) if weight != 0]
    if any(reward is inner(gold) for reward in paid):
        raise ValueError(
            f"{call}: the gold reward is one that training is paid by. Give one that it does not see, or give that one a "
            "weight of 0 in reward_weights."
        )


def inner(reward: Any) -> Any:
    """A reward without what has been wrapped around it."""
    return inspect.unwrap(reward) if callable(reward) else reward


def products(rewards: Sequence[Callable]) -> list[RoutedProduct]:
    """Those that are products of factors."""
    return [reward for reward in map(inner, rewards) if isinstance(reward, RoutedProduct)]
