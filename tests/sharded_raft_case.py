"""RAFT and ReST runs whose policy FSDP2 shards over two CPU processes: `sharded_raft_case.py FOLDER WHAT '{"full": true}'`.

WHAT is a function below; what it returns is written to FOLDER, one file per process.
"""

import json
import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from cpu_sharding import FSDP2, shard_on_cpu
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from self_training_case import PROMPTS, even_letters, trainer
from table_case import adapter, default_dtype
from tiny import byte_tokenizer, tiny_llama
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM
from two_processes import leave

import trl_ext
from trl_ext import RAFTTrainer, VLLMGenerator
from trl_ext.sequences.samples import Sample
from trl_ext.trainer_kit.overrides import outputs_of
from trl_ext.trainer_kit.sharding import whole
from trl_ext.trainer_kit.whole_copies import WholeCopy

COMPLETIONS = {"completion": [" on", None, " so", " no", " up", " it", None, " hm"]}
ANSWERS = {
    "completion": [" up", " on", " so", " no", " in", " it", " hm", " at"]
}  # of one length: a mean of means is one
HELD_OUT = Dataset.from_dict({"prompt": [f"where {i}?" for i in range(8)]} | ANSWERS)
UNTOLD = {"prompt_ids": None, "completion_ids": None, "ended": True, "generator": "table", "seed": -1}
TOLD = ("eval_loss", "eval_score", "eval_length", "grow/score", "grow/score_kept", "cost")


def made(
    folder: Path, *, full: bool = False, tied: bool = False, streamed: bool = False, method: str = "RAFT", **options
) -> RAFTTrainer:
    """Two stages over eight prompts, which the policy itself completes; three held-out ones."""
    tokenizer, cls = byte_tokenizer(), getattr(trl_ext, f"{method}Trainer")
    policy = tiny_llama(tokenizer, tie_word_embeddings=tied)
    settings = {"eval_dataset": HELD_OUT, "improve_steps": 3, "optim": "adamw_torch"}
    if method == "ReST":
        settings["columns"] = COMPLETIONS
    if streamed:
        settings["train_dataset"] = Dataset.from_dict({"prompt": PROMPTS}).to_iterable_dataset()
    return trainer(folder, cls, model=policy if full else adapter(0, "CAUSAL_LM", policy), **settings | options)


def run(folder: Path, *, resume: str | None = None, after=lambda trainer: {}, **options) -> dict[str, Tensor]:
    """Train in float64: the trained weights, and what was logged of each Grow and evaluation."""
    with default_dtype(torch.float64):
        one = made(folder, use_cpu="RANK" not in os.environ, **options)
        one.train(resume_from_checkpoint=resume)
        assert isinstance(one.model, FSDPModule) == (one.accelerator.num_processes > 1)
        told = weights(one) | after(one)
    history = {name: [entry[name] for entry in one.state.log_history if name in entry] for name in TOLD}
    return told | {name: torch.tensor(values, dtype=torch.float64) for name, values in history.items() if values}


def weights(one: RAFTTrainer) -> dict[str, Tensor]:
    """What has been trained."""
    learned = [(name, p) for name, p in one.model.named_parameters() if p.requires_grad]
    return {f"policy.{name}": whole(p.detach()).clone() for name, p in learned}


def trained(folder: Path, **options) -> dict[str, Tensor]:
    return run(folder, **options)


def saved_and_evaluated(one: RAFTTrainer) -> dict[str, Tensor]:
    one.save_model(Path(one.args.output_dir, "saved"))
    one.evaluate()
    return {}


def used(folder: Path, **options) -> dict[str, Tensor]:
    """The same, then saved and evaluated."""
    return run(folder, after=saved_and_evaluated, **options)


def by_config(folder: Path, **options) -> dict[str, Tensor]:
    """FSDP2 is asked for by the config, and nothing by accelerate's file."""
    for name in FSDP2:
        if name != "ACCELERATE_TORCH_DEVICE":
            del os.environ[name]
    return run(folder, fsdp=True, **options)


def in_16_bits(folder: Path) -> dict[str, Tensor]:
    """Of passes in bf16 losses are in float32: as accelerate would have it, one of 5 would be told to a 1/32."""
    one = made(folder, full=True, bf16=True, num_stages=1, use_cpu=False)
    with outputs_of(one, "compute_loss") as losses:
        one.train()
    assert {loss.dtype for loss in losses} == {torch.float32}
    return {}


def fails(folder: Path) -> dict[str, Tensor]:
    """A reward that fails for a prompt that one process scores ends both."""

    def broken(completions, prompts, **columns):
        if "go" in prompts:
            raise OSError("the service is away")
        return even_letters(completions)

    with pytest.raises((OSError, RuntimeError), match="the service is away"):
        made(folder, full=True, use_cpu=False, reward_funcs=broken).train()
    return {}


class Table:
    """A generator that is not the policy, and never asks for its weights."""

    name, samples_policy = "table", False

    def settings(self):
        return {}

    def generate(self, parts, sampling, policy):
        for part in parts:
            rows = [(row, i, prompt) for row, prompt in zip(part.rows, part.prompts, strict=True) for i in range(2)]
            yield (
                part,
                [
                    Sample(row=row, sample=i, prompt=prompt, completion=f" {prompt[i:]}", **UNTOLD)
                    for row, i, prompt in rows
                ],
            )


def from_table(folder: Path, **options) -> dict[str, Tensor]:
    """Somebody else samples; no process ever holds the whole policy."""
    WholeCopy.filled = lambda copy: pytest.fail("the weights were put together")
    return run(folder, generator=Table(), eval_dataset=None, **options)


def by_vllm(folder: Path, *, base: str) -> dict[str, Tensor]:
    """vLLM samples the policy at temperature 0, in a process of its own beside each; the ids of each Grow's completions."""
    lora = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(1)
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), lora)
    generator = VLLMGenerator(dtype="float32", engine_kwargs={"enforce_eager": True})
    rows = {"per_device_train_batch_size": 4 if "RANK" in os.environ else 8}
    one = trainer(
        folder, model=policy, generator=generator, temperature=0.0, num_generations=1, improve_steps=3,
        use_cpu="RANK" not in os.environ, **rows,
    )  # fmt: skip
    one.train()
    generator.close()
    grows = [pq.read_table(folder / f"grow-{stage:03d}.parquet")["completion_ids"].to_pylist() for stage in range(2)]
    return {f"{stage}.{row}": torch.tensor(ids) for stage, grow in enumerate(grows) for row, ids in enumerate(grow)}


SETTINGS = {
    "FSDP_STATE_DICT_TYPE": ("SHARDED_STATE_DICT", "save_model would write no weights. Set it to FULL_STATE_DICT"),
    "FSDP_AUTO_WRAP_POLICY": ("NO_WRAP", "another fsdp_auto_wrap_policy .*: it was never tried"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("true", "fsdp_cpu_ram_efficient_loading=true: it was never tried"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("true", r"RAFTConfig\(gradient_checkpointing=True\)"),
    "FSDP_VERSION": ("1", "RAFTTrainer runs on .* or under FSDP2, not under FSDP1: .*--multi_gpu.*EndpointGenerator"),
}


def refused(folder: Path) -> dict[str, Tensor]:
    """What is said where accelerate, and not the config, asks for what cannot be done, and before weights are cut."""
    for name, (value, message) in SETTINGS.items():
        version = {"FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"} if name == "FSDP_VERSION" else {}
        os.environ.update(FSDP2 | version | {name: value})
        with pytest.raises(ValueError, match=message):
            made(folder, use_cpu=False)
    os.environ.update(FSDP2)
    with pytest.raises(ValueError, match="torch_compile=True: it was never tried"):
        made(folder, use_cpu=False, torch_compile=True)
    with pytest.raises(ValueError, match=r"RAFTTrainer.evaluate\(\) under FSDP2, before train"):
        made(folder, use_cpu=False).evaluate()
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    shard_on_cpu()
    target, what, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    results = globals()[what](target, **options)
    save_file(results, target / f"process-{torch.distributed.get_rank()}.safetensors")
    leave()
