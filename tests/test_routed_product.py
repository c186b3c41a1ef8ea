import pytest

from trl_ext import LengthIncentive, RepetitionPenalty
from trl_ext.rewards.routed_product import Route, RoutedProduct


class Constant:
    name = "constant"

    def __init__(self, value):
        self.value = value

    def __call__(self, *, completions, **columns):
        return [self.value] * len(completions)


def test_equal_factors_run_once():
    """The length factors of both routes are equal values: one call, over the rows of both."""
    calls = []

    def count(text):
        calls.append(text)
        return text.split()

    length, same = LengthIncentive(tokenize=count), LengthIncentive(tokenize=count)
    product = RoutedProduct((Route("open", (length,)), Route("closed", (same,))))
    assert product(completions=["a b", "c"], query_type=["open", "closed"]) == [0.02, 0.01]
    assert calls == ["a b", "c"]


def test_a_control_is_other_routes():
    """R³ without routing or relevance: LI · RP for every query."""
    factors = (LengthIncentive(), RepetitionPenalty())
    control = RoutedProduct((Route("open", factors), Route("closed", factors)))
    assert control(completions=["no " * 5, "Two."], query_type=["open", "closed"]) == pytest.approx([0.05 / 3, 0.02])


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, 3.5, 10.0])
def test_a_scale_is_one_straight_line(value):
    """Below 0 and above the relevance that counts as best too: nothing is clamped."""
    product = RoutedProduct((Route("closed", (Constant(value),), scale=5.12 / 3.5),))
    assert product(completions=["x"], query_type=["closed"]) == pytest.approx([value * 5.12 / 3.5])


def test_a_factor_named_twice_counts_twice():
    product = RoutedProduct((Route("open", (LengthIncentive(), LengthIncentive())),))
    assert product(completions=["a b"], query_type=["open"]) == [0.02 * 0.02]
