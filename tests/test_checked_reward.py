import asyncio
import functools
import inspect

import numpy as np
import pytest
import torch

from trl_ext import LengthIncentive
from trl_ext.rewards.checked_reward import checked_reward

COMPLETIONS = ["one", "two", "three"]


def answer(value):
    def custom(completions, **columns):
        return value

    return checked_reward(custom)(prompts=[""] * 3, completions=COMPLETIONS)


def test_good_answers_become_floats():
    assert answer([1, None, 2.5]) == [1.0, None, 2.5]
    assert answer([True, np.float32(0.5), torch.tensor(2.0)]) == [1.0, 0.5, 2.0]
    assert answer(torch.tensor([1.0, 2.0, 3.0])) == [1.0, 2.0, 3.0]
    assert answer(score for score in (1, 2, 3)) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.0, float("nan"), 0.0], r"'custom' returned nan for row 1 \(completion 'two'\)"),
        ([0.0, 0.0, float("inf")], "returned inf for row 2"),
        (["high", 0.0, 0.0], "returned 'high' for row 0"),
        ("abc", "returned 'abc': expected a list with one number per completion"),
        (0.5, "returned 0.5: expected a list"),
        (None, "returned None: expected a list"),
        ([1.0, 2.0], "returned 2 rewards for 3 completions"),
        ([[1.0], [2.0], [3.0]], r"returned \[1.0\] for row 0"),
    ],
)
def test_bad_answers_name_function_and_row(value, message):
    with pytest.raises(ValueError, match=message):
        answer(value)


def test_async_functions_stay_async():
    async def slow(completions, **columns):
        return [float("nan")] * len(completions)

    wrapped = checked_reward(slow)
    assert inspect.iscoroutinefunction(wrapped) and wrapped.__name__ == "slow"
    with pytest.raises(ValueError, match="'slow' returned nan for row 0"):
        asyncio.run(wrapped(completions=COMPLETIONS))


def test_names_are_kept():
    def named(completions, factor, **columns):
        return [factor] * len(completions)

    assert checked_reward(functools.partial(named, factor=2.0)).__name__ == "named"
    assert checked_reward(LengthIncentive()).__name__ == "LengthIncentive"
    assert not inspect.iscoroutinefunction(checked_reward(LengthIncentive()))
