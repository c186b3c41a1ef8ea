"""What a trainer does not take of its settings, each with the reason and the way round."""

from collections.abc import Iterable

UNTRIED = "it was never tried"
Refusal = tuple[bool, str, str, str]  # whether it is so, what came, why it is refused, and what to do


def refuse_settings(found: Iterable[Refusal], *, call: str) -> None:
    """Raise a ValueError for the first that is so; `call`: who refuses, and where.

    >>> refuse_settings([(True, "fp16=True", UNTRIED, "Set bf16=True")], call="PPOTrainer under DeepSpeed ZeRO-2")
    Traceback (most recent call last):
    ValueError: PPOTrainer under DeepSpeed ZeRO-2 with fp16=True: it was never tried. Set bf16=True.
    """
    for is_so, came, why, instead in found:
        if is_so:
            raise ValueError(f"{call} with {came}: {why}. {instead}.")
