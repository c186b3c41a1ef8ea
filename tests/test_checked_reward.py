import asyncio
import functools
import inspect
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from trl_ext import LengthIncentive
from trl_ext.rewards.checked_reward import checked_reward, distinct_names, finite_number

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
    assert answer([np.True_, Decimal("0.5"), Fraction(1, 4)]) == [1.0, 0.5, 0.25]
    assert answer(np.array([[True], [False], [True]])) == [1.0, 0.0, 1.0]
    assert answer(torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.bfloat16, requires_grad=True)) == [1.0, 2.0, 3.0]
    assert answer([torch.tensor([1.0]), np.array([2.0]), None]) == [1.0, 2.0, None]
    assert all(type(score) is float for score in answer([np.True_, Decimal(1), np.int64(2)]))


@pytest.mark.parametrize("value", ["1", None, 1j, [1.0], torch.ones(2), np.str_("1"), Decimal("NaN"), Decimal("sNaN")])
def test_what_is_no_number(value):
    assert finite_number(value) is None


@pytest.mark.parametrize("value", [10**400, 1e39, -1e300, np.float64("-inf"), Decimal("1e50"), np.nan])
def test_numbers_that_are_not_finite_where_trainers_compute(value):
    assert finite_number(value) is None
    kept = checked_reward(lambda **_: [value], keep_invalid=True)(completions=["a"])
    assert len(kept) == 1 and np.isnan(kept[0])


def test_names_that_are_alike_are_told_apart():
    assert distinct_names(["near", "judge", "judge"]) == ["near", "judge_1", "judge_2"]
    names = distinct_names(["judge", "judge", "judge_0"])  # whose own name is what the first would get
    assert len(set(names)) == 3


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
        (torch.ones(3, 2), r"returned \[1.0, 1.0\] for row 0"),
        (torch.tensor(1.0), r"returned tensor\(1.\): expected a list"),
        (np.array(1.0), "expected a list with one number"),
        ({0: 1.0, 1: 2.0, 2: 3.0}, "expected a list with one number"),
        ({1.0, 2.0, 3.0}, "expected a list with one number"),
        (b"abc", "expected a list with one number"),
        ([1e300, 0.0, 0.0], r"returned 1e\+300 for row 0 .*finite number \(float32\)"),
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
    assert checked_reward(LengthIncentive(), name="shorter").__name__ == "shorter"
    assert not inspect.iscoroutinefunction(checked_reward(LengthIncentive()))


@pytest.mark.parametrize(("name", "logged"), [(None, "r3/near"), ("custom_1", "r3/near_1")])
def test_what_a_reward_logs_is_told_apart_too(name, logged):
    def custom(completions, log_metric, **columns):
        log_metric("r3/near", 2.0)
        return [1.0] * len(completions)

    seen = {}
    checked_reward(custom, name=name)(completions=COMPLETIONS, log_metric=seen.__setitem__)
    assert seen == {logged: 2.0}
