"""RAFT and ReST runs of two CPU processes, under DDP or an engine: `sharded_raft_case.py FOLDER WHAT '{"full": true}' FSDP2`.

WHAT is a function below; what it returns is written to FOLDER, one file per process.
"""

import json
import os
import signal
import sys
from functools import partial
from itertools import count
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
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
from trl_ext import EndpointGenerator, RAFTTrainer, VLLMGenerator
from trl_ext.generation.protocol import Generator
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.trainer_kit.overrides import outputs_of
from trl_ext.trainer_kit.sharding import whole
from trl_ext.trainer_kit.whole_copies import WholeCopy

COMPLETIONS = {"completion": [" on", None, " so", " no", " up", " it", None, " hm"]}
ANSWERS = {
    "completion": [" up", " on", " so", " no", " in", " it", " hm", " at"]
}  # of one length: a mean of means is one
HELD_OUT = Dataset.from_dict({"prompt": [f"where {i}?" for i in range(8)]} | ANSWERS)
SAMPLED = ["row", "sample", "completion_ids", "kept"]
TOLD = ("eval_loss", "eval_score", "eval_length", "grow/score", "grow/score_kept", "cost")


def made(
    folder: Path,
    *,
    full: bool = False,
    whole: list[str] | None = None,
    tied: bool = False,
    streamed: bool = False,
    held_out: int = 8,
    method: str = "RAFT",
    **options,
) -> RAFTTrainer:
    """Two stages over eight prompts, which the policy itself completes; and held-out ones."""
    tokenizer, cls = byte_tokenizer(), getattr(trl_ext, f"{method}Trainer")
    policy = tiny_llama(tokenizer, tie_word_embeddings=tied)
    settings = {"eval_dataset": HELD_OUT.select(range(held_out)), "improve_steps": 3, "optim": "adamw_torch"}
    if method == "ReST":
        settings["columns"] = COMPLETIONS
    if streamed:
        settings["train_dataset"] = Dataset.from_dict({"prompt": PROMPTS}).to_iterable_dataset()
    settings["model"] = policy if full else adapter(0, "CAUSAL_LM", policy, whole)
    return trainer(folder, cls, **settings | placed() | options)


def placed() -> dict:
    """Where a config has it: one process and DDP say that it is a CPU, of an engine accelerate does."""
    is_sharded = {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & os.environ.keys()
    return {"use_cpu": not is_sharded} | ({"ddp_backend": "gloo"} if "RANK" in os.environ and not is_sharded else {})


def run(
    folder: Path, *, resume: str | bool | None = None, before=lambda trainer: {}, after=lambda trainer: {}, **options
) -> dict[str, Tensor]:
    """Train in float64: the trained weights, what was sampled and kept, and what was logged of each Grow and evaluation."""
    with default_dtype(torch.float64):
        one = made(folder, **options)
        told = before(one)
        one.train(resume_from_checkpoint=resume)
        assert isinstance(one.model, FSDPModule) == one.is_fsdp_enabled
        told |= weights(one) | after(one)
    history = {name: [entry[name] for entry in one.state.log_history if name in entry] for name in TOLD}
    told |= {name: torch.tensor(values, dtype=torch.float64) for name, values in history.items() if values}
    return told | sampled(folder)


def sampled(folder: Path) -> dict[str, Tensor]:
    """Of each Grow the rows, the completions' tokens one behind the other, and in how many Improves each is kept."""
    grows = {
        path.stem: pq.read_table(path, columns=SAMPLED).combine_chunks() for path in folder.glob("grow-*.parquet")
    }
    told = {f"{name}.{column}": grow[column] for name, grow in grows.items() for column in SAMPLED}
    told |= {f"{name}.length": pc.list_value_length(grow["completion_ids"]) for name, grow in grows.items()}
    flat = {name: pc.list_flatten(c) if name.endswith("_ids") else c for name, c in told.items()}
    return {name: torch.tensor(column.to_pylist()) for name, column in flat.items()}


def weights(one: RAFTTrainer) -> dict[str, Tensor]:
    """What has been trained."""
    learned = [(name, p) for name, p in one.model.named_parameters() if p.requires_grad]
    return {f"policy.{name}": whole(p.detach()).clone() for name, p in learned}


def trained(folder: Path, **options) -> dict[str, Tensor]:
    return run(folder, **options)


def saved_and_evaluated(one: RAFTTrainer) -> dict[str, Tensor]:
    one.save_model(Path(one.args.output_dir, "saved"))
    return evaluated(one)


def evaluated(one: RAFTTrainer) -> dict[str, Tensor]:
    said = one.evaluate()
    return {f"asked.{name}": torch.tensor(said[name], dtype=torch.float64) for name in TOLD if name in said}


def used(folder: Path, **options) -> dict[str, Tensor]:
    """The same, then saved and evaluated."""
    return run(folder, after=saved_and_evaluated, **options)


def evaluated_first(folder: Path, **options) -> dict[str, Tensor]:
    """Before anything has been trained."""
    return run(folder, before=evaluated, **options)


def by_config(folder: Path, **options) -> dict[str, Tensor]:
    """FSDP2 is asked for by the config, and nothing by accelerate's file."""
    for name in FSDP2:
        if name != "ACCELERATE_TORCH_DEVICE":
            del os.environ[name]
    return run(folder, fsdp=True, use_cpu=False, **options)


def in_16_bits(folder: Path) -> dict[str, Tensor]:
    """Of passes in bf16 losses are in float32: as accelerate would have it, one of 5 would be told to a 1/32."""
    one = made(folder, full=True, bf16=True, num_stages=1)
    with outputs_of(one, "compute_loss") as losses:
        one.train()
    assert {loss.dtype for loss in losses} == {torch.float32}
    return {}


def fails(folder: Path) -> dict[str, Tensor]:
    """A reward that fails for a prompt that the second process scores ends both."""

    def broken(completions, prompts, **columns):
        if "go" in prompts:
            raise OSError("the service is away")
        return even_letters(completions)

    away, told = "^the service is away$", "^process 1 of 2 failed: OSError: the service is away$"
    with pytest.raises(OSError if (me := int(os.environ["RANK"])) else RuntimeError, match=away if me else told):
        made(folder, full=True, reward_funcs=broken).train()
    return {}


def from_server(folder: Path, *, url: str, **options) -> dict[str, Tensor]:
    """A server samples; no process ever holds the whole policy."""
    if "RANK" in os.environ:
        WholeCopy.filled = lambda copy: pytest.fail("the weights were put together")
    return run(folder, generator=EndpointGenerator("m", url), eval_dataset=None, **options)


def by_vllm(folder: Path, *, base: str) -> dict[str, Tensor]:
    """vLLM samples the policy, in a process of its own beside each, which takes nearly all the time to start."""
    generator = VLLMGenerator(dtype="float32", engine_kwargs={"enforce_eager": True})
    told = greedy(folder, generator, base=base)
    generator.close()
    return told


def greedy(folder: Path, generator: Generator, *, base: str) -> dict[str, Tensor]:
    """RAFT of an adapter at temperature 0; the ids of each Grow's completions."""
    lora = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(1)
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), lora)
    rows = {"per_device_train_batch_size": 4 if "RANK" in os.environ else 8}
    one = trainer(
        folder,
        model=policy,
        generator=generator,
        temperature=0.0,
        num_generations=1,
        improve_steps=3,
        **placed(),
        **rows,
    )
    one.train()
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
            made(folder)
    os.environ.update(FSDP2)
    with pytest.raises(ValueError, match="torch_compile=True: it was never tried"):
        made(folder, torch_compile=True)
    with pytest.raises(ValueError, match=r"RAFTTrainer.evaluate\(\) or predict\(\) under FSDP2, before train"):
        made(folder).evaluate()
    return {}


def of_another_engine(folder: Path) -> dict[str, Tensor]:
    """A checkpoint of data parallelism is none for FSDP2, nor the other way round."""
    options = {"save_strategy": "steps", "save_steps": 1, "num_stages": 1}
    for name in ("DDP", "FSDP2"):
        if name == "FSDP2":
            AcceleratorState._reset_state(reset_partial_state=True)
            shard_on_cpu()
            refuses(made(folder / "DDP", **options), "under one device or data parallelism, and now runs under FSDP2")
        made(folder / name, **options).train()
    for name in FSDP2.keys() - {"ACCELERATE_TORCH_DEVICE"}:
        del os.environ[name]
    AcceleratorState._reset_state()
    refuses(made(folder / "FSDP2", **options, use_cpu=False), "under FSDP2, and now runs under one device or data par")
    return {}


def refuses(one: RAFTTrainer, why: str) -> None:
    """To go on from a checkpoint in its folder, by all processes."""
    for resume in (True, str(Path(one.args.output_dir, "checkpoint-1"))):
        with pytest.raises((ValueError, RuntimeError), match=f"it was written {why}"):
            one.train(resume_from_checkpoint=resume)


def dies(folder: Path, *, where: str, **options) -> None:
    """A process is gone at once, as by the system for lack of memory."""
    rank, owner, name, call = {
        "a step": (0, RAFTTrainer, "training_step", 4),
        "sampling": (1, GrowFiles, "write_sampled", 4),  # of the second Grow
        "saving": (0, RAFTTrainer, "_save_optimizer_and_scheduler", 3),
    }[where]
    if rank == int(os.environ["RANK"]):
        calls, function = count(1), getattr(owner, name)
        gone = partial(os.kill, os.getpid(), signal.SIGKILL)
        setattr(owner, name, lambda *args: gone() if next(calls) == call else function(*args))
    run(folder, **options)


def come_back(folder: Path, *, deaths: list[str], **options) -> dict[str, Tensor]:
    """What has died ends as a run that nobody has killed."""
    whole = run(folder, **options)
    for where in deaths:
        again = run(folder.parent / where, resume=True, **options)
        unlike = [name for name in whole if name not in TOLD and not torch.equal(whole[name], again[name])]
        assert not unlike and whole.keys() == again.keys()
    return {}


def refused_by_zero(folder: Path, *, method: str) -> dict[str, Tensor]:
    """Before the weights are cut."""
    with pytest.raises(
        ValueError,
        match=rf"{method}Trainer runs on .* or under FSDP2, not under DeepSpeed: .*EndpointGenerator",
    ):
        made(folder, method=method)
    return {}


def come_apart() -> None:
    """Each process on a machine of its own, with the others' disk; each counts its processes from 1, as a container does."""
    os.environ.update({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
    os.getpid = lambda: 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, what, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    if options.pop("apart", False):
        come_apart()
    if sys.argv[4] != "DDP":
        shard_on_cpu(engine=sys.argv[4], patience=options.pop("patience", 240))
    results = globals()[what](target, **options)
    save_file(results, target / f"process-{torch.distributed.get_rank()}.safetensors")
    leave()
