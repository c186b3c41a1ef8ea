"""Imported once, by the process from which forked.py's are forked, which so have what it has."""

import gc
import os

import trl_ext

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def load() -> None:
    """All that the package's public names need, out of the way of later garbage collections."""
    for name in trl_ext.__all__:
        getattr(trl_ext, name)
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


load()
