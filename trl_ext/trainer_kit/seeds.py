"""Random numbers that follow from a seed and nothing else."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import numpy as np
import torch


def check_seed(seed: int, *, call: str) -> None:
    """Raise a ValueError for what NumPy, and so transformers, takes for no seed; `call` says where it was given."""
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"{call}: expected a whole number in [0, 2³²). Give e.g. 0.")


def stable_seed(*parts: int | str) -> int:
    """A seed in [0, 2³¹) that follows from its parts and nothing else, on every machine and run.

    >>> stable_seed(0, "grow", 1) == stable_seed(0, "grow", 1) != stable_seed(0, "grow", 2)
    True
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFFFFFF


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's random numbers inside the block, and go on with the former ones after it."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
