"""Gradients of log-probabilities, in one process or in several, under what wraps a model there.

    python -m torch.distributed.run --nproc-per-node=2 tests/log_probs_case.py FOLDER

writes those of each case and process to FOLDER.
"""

import sys

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny import byte_tokenizer, tiny_llama
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from two_processes import leave

from trl_ext.sequences import log_probs

CASES = {
    "plain": {},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
    "adapter": {"find_unused_parameters": True},
    "sharded": None,  # FSDP 2
}


def model_of(case: str) -> nn.Module:
    model = tiny_llama(byte_tokenizer(), tie_word_embeddings=case == "unused").train()
    if case != "adapter":
        return model
    model.gradient_checkpointing_enable()
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False))


def wrapped(case: str) -> nn.Module:
    model = model_of(case)
    if CASES[case] is not None:
        return DistributedDataParallel(model, **CASES[case])
    for part in (*model.model.layers, model):
        fully_shard(part, reshard_after_forward=True)
    return model


def batch() -> dict[str, Tensor]:
    """Eight rows; of every second one only three tokens in all have a label."""
    ids = torch.arange(8 * 10).view(8, 10) + 3
    labels = torch.where((torch.arange(8) % 2 == 0).unsqueeze(1), ids, -100)
    labels[3, 7:] = ids[3, 7:]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def gradients(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """By parameter, of the second of two steps without any move."""
    log_probs.CHUNK_LOGITS = 5 * 259  # some chunks
    for _ in range(2):
        model.zero_grad()
        log_probs.label_log_probs(model, inputs).sum().backward()
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: whole(gradient) for name, gradient in found.items()}


def whole(gradient: Tensor) -> Tensor:
    return gradient.full_tensor() if isinstance(gradient, dist.tensor.DTensor) else gradient.clone()


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    half = {name: rows[rank :: dist.get_world_size()] for name, rows in batch().items()}
    for case in CASES:
        save_file(gradients(wrapped(case), half), f"{sys.argv[1]}/{case}-{rank}.safetensors")
    leave()


if __name__ == "__main__":
    main()
