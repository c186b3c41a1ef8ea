"""Who made a model may know why it must not be cut; who lets an engine cut it asks, while its weights are whole."""

from collections.abc import Callable, MutableMapping
from weakref import WeakKeyDictionary

from torch import nn

_CHECKS: MutableMapping[nn.Module, Callable[[], None]] = WeakKeyDictionary()


def ask_before_cutting(model: nn.Module, check: Callable[[], None]) -> None:
    """Let a model be asked by `check`, which raises a ValueError and does not hold the model."""
    _CHECKS[model] = check


def check_may_be_cut(model: nn.Module) -> None:
    """Raise the ValueError of the first model within that must not be."""
    for module in model.modules():
        if module in _CHECKS:
            _CHECKS[module]()
