"""Each option of its type, within its rule, and set only where it does something."""

import dataclasses
import math

import numpy as np
import pytest
from transformers import HfArgumentParser

from trl_ext import ImitationRewardConfig, PPOConfig, RAFTConfig, ReSTConfig, SelfTrainingConfig
from trl_ext.generation import Sampling
from trl_ext.trainer_kit.config_checks import check_config, checked
from trl_ext.trainer_kit.option_rules import Rule, having, nonzero, switched_on, without

ON_CPU = {"output_dir": "unused", "bf16": False, "report_to": "none"}


@dataclasses.dataclass
class Example:
    size: int = 3
    rate: float | None = None
    on: bool = False
    kind: str = "a"
    names: list[str] | None = None
    shares: list[float] = dataclasses.field(default_factory=lambda: [0.5])

    def __post_init__(self):
        check_config(self, RULES)


RULES = {
    "size": Rule(1),
    "rate": Rule(above=0.0, needs=switched_on("on")),
    "kind": Rule(words=("a", "b", "c")),
    "names": Rule(needs=(having("kind", "b"), nonzero("size"))),
    "shares": Rule(0, 1, needs=without("names", "they say it")),
    "of_another_version": Rule(1),
}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 1.5}, r"^Example\(size=1.5\): it must be in \[1, ∞\). Give a whole number from there, or leave it at 3.$"),
        ({"size": True}, r"size=True\): it must be in \[1, ∞\)"),
        ({"size": None}, r"size=None\): it must be in \[1, ∞\)"),
        ({"size": math.nan}, r"size=nan\): it must be in"),
        ({"size": math.inf}, r"size=inf\): it must be in"),
        ({"rate": "0.5"}, r"rate='0.5'\): it must be in \(0.0, ∞\). Give a number from there, or leave it at None.$"),
        ({"rate": 0.0}, r"rate=0.0\): it must be in \(0.0, ∞\)"),
        ({"on": "no"}, r"on='no'\): it must be True or False. Give one of them, or leave it at False.$"),
        ({"on": 1}, r"on=1\): it must be True or False"),
        ({"kind": "d"}, r"kind='d'\): choose one of 'a', 'b' or 'c', or leave it at 'a'.$"),
        ({"kind": ["a"]}, r"kind=\['a'\]\): choose one of 'a', 'b' or 'c'"),
        ({"names": "x"}, r"names='x'\): expected a list of texts, got one value. Write names=\['x'\], or leave it at None.$"),
        ({"names": ["x", 1]}, r"names=\['x', 1\]\): expected a list of texts, or leave it at None.$"),
        ({"shares": [0.5, 1.5]}, r"shares=\[0.5, 1.5\]\): expected a list of numbers, each in \[0, 1\], or"),
        ({"shares": [math.nan]}, r"shares=\[nan\]\): expected a list of numbers, each in"),
        ({"rate": 0.5}, r"^Example\(rate=0.5, on=False\): it does nothing without on=True. Set that, or leave it out.$"),
        ({"names": ["x"]}, r"names=\['x'\], kind='a'\): it does nothing without kind='b'"),
        (
            {"names": ["x"], "kind": "b", "shares": [1]},
            r"shares=\[1\], names=\['x'\]\): it does nothing beside `names`: they say it. Leave one of the two out.$",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Example(**given)


def test_at_zero_it_does_nothing():
    with pytest.raises(ValueError, match=r"learning=0, rate=0\): it does nothing at rate=0. Give a larger one"):
        check_config(dataclasses.make_dataclass("C", [("rate", int, 1), ("learning", int, 1)])(0, 0), {"learning": Rule(needs=nonzero("rate"))})  # fmt: skip


def test_what_is_taken_as_what():
    """Whole floats as whole numbers, NumPy's numbers as Python's, tuples and arrays as lists; None where it is allowed."""
    one = Example(4.0, np.float32(0.5), np.bool_(True), "b", ("x",))
    assert vars(one) == {"size": 4, "rate": 0.5, "on": True, "kind": "b", "names": ["x"], "shares": [0.5]}
    assert list(map(type, vars(one).values())) == [int, float, bool, str, list, list]
    assert Example(np.int64(2)).size == 2 and type(Example(np.int64(2)).size) is int
    assert Example(shares=np.array([0.25, 1.0])).shares == [0.25, 1.0]
    assert Example(rate=1, on=True).rate == 1 and Example(rate=None).rate is None


def test_an_argument_of_a_function():
    assert checked("f", "size", 2.0, int, Rule(1)) == 2
    with pytest.raises(ValueError, match=r"^f\(size=0\): it must be in \[1, ∞\). Give a whole number from there.$"):
        checked("f", "size", 0, int, Rule(1))
    with pytest.raises(ValueError, match=r"^f\(size=0\): expected at least 1.$"):
        checked("f", "size", 0, int, Rule(1, expected="at least 1"))


# The configs

SETTINGS = [
    (PPOConfig, {}), (SelfTrainingConfig, {}), (RAFTConfig, {}), (RAFTConfig, {"importance_clip": 0.2}), (ReSTConfig, {}),
    (ReSTConfig, {"restart_from_base": True}), (ReSTConfig, {"restart_from_base": True, "temperature": 0.0}),
    (ReSTConfig, {"importance_clip": 0.2}), (ReSTConfig, {"selection": "percentile"}), (ImitationRewardConfig, {}),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "settings"), SETTINGS)
def test_defaults_pass_however_they_are_given(cls, settings):
    """Left out, written out, from a command line, and as a config that was made before has them."""
    given = ON_CPU | settings
    made = cls(**given)
    written = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    cls(**written | given)
    line = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    HfArgumentParser(cls).parse_args_into_dataclasses(line)
    cls(**given)  # the parser has changed the fields' types
    same = {"generation_batch_size": None} if cls is PPOConfig else {}  # GRPOConfig takes either size
    again = dataclasses.replace(made, **same)
    assert {f.name for f in dataclasses.fields(cls) if getattr(made, f.name) != getattr(again, f.name)} == set()


@pytest.mark.parametrize("cls", [PPOConfig, RAFTConfig, ReSTConfig])
@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("top_p", "x"), ("max_completion_length", math.nan), ("num_generations", 1.5), ("learning_rate", "1e-5"),
        ("temperature", True), ("reward_weights", ["x"]), ("reward_weights", 1.0), ("per_device_train_batch_size", 1.5),
        ("gradient_checkpointing", "no"), ("seed", None), ("logging_first_step", 1), ("fsdp", 2),
    ],
)  # fmt: skip
def test_inherited_options_of_another_type(cls, name, bad):
    with pytest.raises(ValueError, match=rf"{cls.__name__}\({name}="):
        cls(**ON_CPU | {"max_completion_length": 8, name: bad})


@pytest.mark.parametrize(
    "bad",
    [
        {"top_p": "x"}, {"top_k": 1.5}, {"temperature": math.inf}, {"min_p": 2}, {"seed": "x"}, {"num_generations": True},
        {"repetition_penalty": math.nan}, {"max_completion_length": None},
    ],
)  # fmt: skip
def test_sampling_of_another_type(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=rf"Sampling\({name}="):
        Sampling(**bad)


@pytest.mark.parametrize("bad", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}])
def test_filters_that_the_likeliest_token_passes_anyway(bad):
    (name,) = bad
    for cls in (Sampling, lambda **given: RAFTConfig(**ON_CPU, max_completion_length=8, **given)):
        with pytest.raises(ValueError, match=rf"\({name}=.*, temperature=0.0\): it does nothing at temperature=0"):
            cls(temperature=0.0, **bad)
    assert Sampling(temperature=0.0, repetition_penalty=1.2, top_p=1, top_k=0.0).top_p == 1.0


def test_a_share_of_0_is_none():
    assert Sampling(temperature=0.0, min_p=0.0) == Sampling(temperature=0.0)
    assert Sampling(min_p=0) == Sampling()
