"""Short texts that tell models, data and adapters apart, the same wherever those are loaded from."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import Tensor, nn

from trl_ext.trainer_kit.kept_facts import kept

HEAD = "score"  # of a reward or value model: random where it is new, and trained from there
REFERENCE = "ref"  # TRL's name of the frozen copy of an adapter, from which KL is measured


def model_fingerprint(model: nn.Module) -> str:
    """Of a model before the run: its parameters' names and shapes, and some numbers of those that are not trained.

    Under an adapter these are the base's; without one, all are looked at. What is new is not, an adapter or a head: its
    random numbers follow from the seed, or are the user's affair.
    """
    named = {name: p for name, p in model.named_parameters() if REFERENCE not in name.split(".")}
    has_base = any(not p.requires_grad for p in named.values())
    new = {name for name, p in named.items() if (has_base and p.requires_grad) or HEAD in name.split(".")}
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in named.items():
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if name not in new:
            digest.update(_numbers(parameter))
    return digest.hexdigest()


def reference_fingerprint(model: nn.Module) -> str | None:
    """Of TRL's copy of the adapter that a run began with, or None where there is none."""
    reference = [(name, p) for name, p in model.named_parameters() if REFERENCE in name.split(".")]
    return tensors_fingerprint(reference) if reference else None


def weights_fingerprint(model: nn.Module) -> str:
    """Of all numbers of a model, and of what its LoRA adapters multiply theirs by."""
    scales = [(f"{name}.scaling", getattr(module, "scaling", None)) for name, module in model.named_modules()]
    factors = [(name, torch.tensor([*each.values()])) for name, each in scales if isinstance(each, dict)]
    return tensors_fingerprint([*model.named_parameters(), *factors])


def tensors_fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """Of tensors' names, shapes and first numbers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in named:
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + _numbers(tensor))
    return digest.hexdigest()


def _numbers(tensor: Tensor) -> bytes:
    """The first numbers of a tensor; nothing of one without content, as other machines' parts of a model are."""
    return b"" if tensor.is_meta else tensor.detach().flatten()[:64].cpu().to(torch.float32).numpy().tobytes()


def data_fingerprint(dataset: Dataset | IterableDataset | None) -> str | None:
    """Of the rows' content: equal data have equal fingerprints, wherever they were loaded from. Of a stream, its first row."""
    if dataset is None:
        return None
    if isinstance(dataset, Dataset):
        return kept(dataset, "fingerprint", lambda: rows_fingerprint(dataset.column_names, dataset))
    return stream_fingerprint(next(iter(dataset), {}))


def stream_fingerprint(first: dict[str, Any]) -> str:
    """Of a stream, of which its first row is all that can be known."""
    return f"stream {rows_fingerprint(list(first), [first])}"


def rows_fingerprint(columns: list[str], rows: Iterable[dict[str, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(sorted(columns)).encode())
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def adapter_settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What the adapters of a model were made with, as JSON takes it, but for their base's path; nothing for a model without."""
    if not isinstance(model, PeftModel):
        return {}
    return {
        name: {
            key: sorted(value) if isinstance(value, set) else value
            for key, value in config.to_dict().items()
            if key != "base_model_name_or_path"  # which the weights' fingerprint stands for, and a push would tell
        }
        for name, config in model.peft_config.items()
        if name != REFERENCE
    }
