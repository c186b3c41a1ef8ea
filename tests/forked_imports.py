"""Imported once by the process from which forked.py's are forked."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # noqa: F401
import torch

import trl_ext

torch.set_num_threads(1)
PUBLIC = [getattr(trl_ext, name) for name in trl_ext.__all__]
