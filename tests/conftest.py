import gc
import importlib.metadata
import os
from functools import cache

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest  # all else where it is used: xdist's first process reads this file too, and only then starts the others

importlib.metadata.metadata = cache(importlib.metadata.metadata)  # accelerate reads peft's 14 times for each trainer
collect_ignore = ["user_program.py", "trl_1_12_numbers.py"]  # for a type checker, and for TRL 1.12


def pytest_collectstart():
    gc.disable()  # until all is imported


def pytest_collection_modifyitems(items):
    import torch

    torch.set_num_threads(1)  # the models here are smaller than the cost of sharing them between threads
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish():
    """Each training begins with a full garbage collection; that of all that is imported by now would take half a second."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where a seam has moved, say which, and where it is used: the docstring of its test."""
    report = yield
    if report.failed and item.path.name == "test_upstream_seams.py":
        report.sections.append(("Upstream has moved a seam", f"{item.name}\n{item.function.__doc__}"))
    return report


@pytest.fixture(params=["is_fsdp_enabled", "is_deepspeed_enabled"])
def sharding_asked_for(request, monkeypatch):
    """Sharding as a trainer finds it where accelerate's environment asks for it."""
    from transformers import Trainer

    made = Trainer.create_accelerator_and_postprocess

    def asked_for(self):
        made(self)
        setattr(self, request.param, True)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", asked_for)


@pytest.fixture
def tokenizer():
    from tiny import byte_tokenizer

    return byte_tokenizer()


@pytest.fixture
def policy(tokenizer):
    from tiny import tiny_llama

    return tiny_llama(tokenizer)
