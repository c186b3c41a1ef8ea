import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from tiny import byte_tokenizer, tiny_llama

torch.set_num_threads(1)  # the models here are smaller than the cost of sharing them between threads


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def policy(tokenizer):
    return tiny_llama(tokenizer)
