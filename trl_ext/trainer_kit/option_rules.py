"""What an option may be, and where it does something: the vocabulary of a config's table of rules.

    RULES = {
        "gamma": Rule(above=0.0, high=1.0),
        "kl_estimator": Rule(words=("k1", "k3"), needs=nonzero("beta")),
        "improve_epochs": Rule(above=0.0, needs=without("improve_steps", "those are all its steps")),
    }

The field's annotation says the rest: its type, and whether it may be None. `config_checks.check_config` reads both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Need:
    """What must be so for an option that was set to do something.

    Args:
        holds: Whether it is, of the config.
        said: What it does otherwise, and what to do: the end of the message.
        shown: The other options that decide, which the message shows with their values.
    """

    holds: Callable[[Any], bool]
    said: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """What a value must be, beside its annotated type; of a list, each of its values.

    Args:
        low, high: Smallest and largest number; None: no bound. With either, it is finite.
        above: What it must be more than, in the place of `low`.
        words: The texts to choose from.
        typed: Whether the annotation holds; False where a parent takes other types too.
        required: Whether None is refused, though the annotation, which may be a parent's, has it.
        fits: What else must be so of the whole value.
        expected: What a message says of all this; None: it is made from the rest.
        needs: What must be so of other options.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    words: tuple[str, ...] = ()
    typed: bool = True
    required: bool = False
    fits: Callable[[Any], bool] = lambda value: True
    expected: str | None = None
    needs: Need | tuple[Need, ...] = ()

    @property
    def interval(self) -> str | None:
        """The numbers that it allows, None where it does all.

        >>> Rule(above=0.0, high=1.0).interval, Rule(1).interval, Rule().interval
        ('(0.0, 1.0]', '[1, ∞)', None)
        """
        if self.low is self.high is self.above is None:
            return None
        least = f"[{self.low}" if self.above is None else f"({self.above}"
        return f"{least}, {'∞)' if self.high is None else f'{self.high}]'}"

    def allows(self, number: float) -> bool:
        """Whether a finite number is in the interval."""
        enough = self.low is None or number >= self.low if self.above is None else number > self.above
        return enough and (self.high is None or number <= self.high)


AT_LEAST_1 = Rule(1, expected="at least 1, a whole number")


def switched_on(name: str) -> Need:
    """The option belongs to a switch."""
    return having(name, True)


def having(name: str, value: Any) -> Need:
    """The option belongs to one value of another."""
    remedy = f"it does nothing without {name}={value!r}. Set that, or leave it out."
    return Need(lambda config: getattr(config, name) == value, remedy, (name,))


def nonzero(name: str) -> Need:
    """The option belongs to a number that 0 switches off; None is none."""
    remedy = f"it does nothing at {name}=0. Give a larger one, or leave it out."
    return Need(lambda config: getattr(config, name) != 0, remedy, (name,))


def below(low: str, high: str) -> Need:
    """One option is less than another; where either is None, there is nothing to hold."""

    def holds(config: Any) -> bool:
        ends = getattr(config, low), getattr(config, high)
        return None in ends or ends[0] < ends[1]

    return Need(holds, f"expected {low} below {high}. Lower the one, or raise the other.", (low, high))


def without(name: str, why: str) -> Need:
    """The option has nothing to say beside another that is set."""
    remedy = f"it does nothing beside `{name}`: {why}. Leave one of the two out."
    return Need(lambda config: getattr(config, name) in (None, False), remedy, (name,))
