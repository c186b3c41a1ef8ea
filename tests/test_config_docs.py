"""What `help` says of a config's options."""

import inspect
import pydoc
import re
from dataclasses import MISSING, dataclass, field

import pytest
from transformers import HfArgumentParser

from trl_ext import ImitationRewardConfig, PPOConfig, RAFTConfig, ReSTConfig, SelfTrainingConfig
from trl_ext.trainer_kit.config_docs import documented, option

CONFIGS = [PPOConfig, SelfTrainingConfig, RAFTConfig, ReSTConfig, ImitationRewardConfig]


@documented
@dataclass
class Example:
    """An example.

    In two lines.
    """

    size: int = field(default=3, metadata={"group": "the size", "help": "Larger: more."})
    names: list[str] | None = field(default=None, metadata={"help": "None: all."})
    pair: list[float] = field(
        default_factory=lambda: [0.0, 1.0], metadata={"group": "the rest", "help": "Two numbers. " * 10}
    )


def test_by_hand():
    assert (
        Example.__doc__
        == """An example.

In two lines.

Parameters:
    > Parameters that control the size

    size (`int`, *optional*, defaults to `3`):
        Larger: more.

    names (`list[str] | None`, *optional*, defaults to `None`):
        None: all.

    > Parameters that control the rest

    pair (`list[float]`, *optional*, defaults to `[0.0, 1.0]`):
        Two numbers. Two numbers. Two numbers. Two numbers. Two numbers. Two numbers. Two numbers. Two numbers. Two
        numbers. Two numbers.
"""
    )


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("config", CONFIGS)
def test_every_own_option_is_explained_once(config):
    entries = dict(re.findall(r"^    (\w+) (\(.*\):\n(?:        .*\n)+)", config.__doc__ + "\n", flags=re.M))
    own = inspect.get_annotations(config)
    assert list(entries) == list(own)
    for name in own:
        of = config.__dataclass_fields__[name]
        default = of.default if of.default_factory is MISSING else of.default_factory()
        assert words(entries[name]).endswith(f"defaults to `{default!r}`): {words(of.metadata['help'])}")
        assert len(re.findall(rf"^    {name} \(", config.__doc__, flags=re.M)) == 1


@pytest.mark.parametrize("config", CONFIGS)
def test_the_first_option_names_its_group(config):
    assert re.search(r"Parameters:\n    > Parameters that control .*\n\n    \w+ \(", config.__doc__)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_command_line_takes_the_options(config):
    """Its parser refuses metadata that argparse does not know."""
    assert "--output_dir" in HfArgumentParser(config).format_help()


def test_a_list_is_each_configs_own():
    @dataclass
    class Listed:
        ends: list[float] = option([0.0, 1.0], "Two numbers.")

    Listed().ends.append(2.0)
    assert Listed().ends == [0.0, 1.0]


def test_what_is_raised_comes_last():
    assert PPOConfig.__doc__.index("\n\nParameters:\n") < PPOConfig.__doc__.index(
        "\n\nRaises:\n    ValueError: For a value out"
    )


def test_help_explains_before_it_lists_methods():
    text = pydoc.plain(pydoc.render_doc(PPOConfig))
    assert text.index("GAE λ in [0, 1]") < text.index("Method resolution order")
