"""PPO runs whose policy FSDP2 shards over two CPU processes: `sharded_case.py FOLDER WHAT '{"kind": "head"}'`.

WHAT is a function below; what it returns is written to FOLDER, one file per process.
"""

import json
import os
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from cpu_sharding import FSDP2, shard_on_cpu
from safetensors.torch import save_file
from table_case import TABLE, run, saved_and_evaluated, table_trainer, weights
from tiny import byte_tokenizer, tiny_llama
from torch import Tensor
from trl.generation import vllm_generation
from two_processes import leave

from trl_ext import SharedBase, TransformersGenerator
from trl_ext.ppo.policy import whole_sequences


def trained(folder: Path, **options) -> dict[str, Tensor]:
    """Three steps over the table's completions."""
    return run(folder, **options)


def used(folder: Path, **options) -> dict[str, Tensor]:
    """The same, then saved and evaluated."""
    return run(folder, after=saved_and_evaluated, **options)


def sampled(folder: Path, **options) -> dict[str, Tensor]:
    """TRL samples, and the processes' longest completions differ: those of the second all end at once."""
    trainer = table_trainer(folder, rollout_func=None, **options)
    rank, generate = trainer.accelerator.process_index, trainer._generate_single_turn
    lengths = []

    def one_token_or_five(*args, **kwargs):
        trainer.generation_config.max_new_tokens = 1 if rank else 5
        completions, *others = generate(*args, **kwargs)
        lengths.append(max(map(len, completions)))
        return completions, *others

    trainer._generate_single_turn = one_token_or_five
    trainer.train()
    return weights(trainer) | {f"length.{rank}": torch.tensor(lengths)}


def values_first(folder: Path, **options) -> dict[str, Tensor]:
    """The critic is asked before the policy has run once."""
    trainer = table_trainer(folder, beta=0.0, max_steps=1, **options)  # no pass of a reference
    make = trainer._evaluate_policy

    def values_before(rollout):
        tokens = whole_sequences(rollout)
        shape = (*tokens["input_ids"].shape, trainer.model.config.hidden_size)
        with pytest.raises(RuntimeError, match="the policy must run once before its critic"):
            trainer.critic.values(1, hidden_states=torch.zeros(shape), **tokens)
        return make(rollout)

    trainer._evaluate_policy = values_before
    trainer.train()
    return weights(trainer)


def refused(folder: Path, **options) -> dict[str, Tensor]:
    """What a trainer says that cannot do it while it is sharded."""
    trainer = table_trainer(folder, **options)
    with pytest.raises(ValueError, match=r"evaluate\(\) under FSDP2, before train"):
        trainer.evaluate(trainer.train_dataset)
    with pytest.raises(ValueError, match=r"save_value_model\('x'\) under FSDP2: the trunk is in pieces"):
        trainer.save_value_model("x")
    return {}


class Server:
    """Stands in for TRL's client of a vLLM server: takes down what it is sent, and answers with the table's completions."""

    sent: ClassVar[list[dict[str, Tensor]]] = []

    def __init__(self, **options):
        pass

    def init_communicator(self, device):
        pass

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def update_named_params(self, metadata, weights):
        weights = {name: tensor.detach().clone() for name, tensor in weights}
        assert [(name, list(tensor.shape)) for name, tensor in weights.items()] == [(n, s) for n, _, s in metadata]
        self.sent.append(weights)

    def reset_prefix_cache(self):
        pass

    def generate(self, *, prompts, **options):
        completions = [byte_tokenizer()(TABLE[byte_tokenizer().decode(ids)])["input_ids"] for ids in prompts]
        log_probs = [[[-5.0]] * len(ids) for ids in completions]
        return {"prompt_ids": prompts, "completion_ids": completions, "logprobs": log_probs}


def synced(folder: Path, **options) -> dict[str, Tensor]:
    """What TRL sends a vLLM server before each rollout, and the weights in the end."""
    vllm_generation.is_vllm_available, vllm_generation.VLLMClient = lambda: True, Server
    told = run(folder, rollout_func=None, use_vllm=True, vllm_mode="server", **options)
    return told | {f"sent.{i}.{name}": tensor for i, sent in enumerate(Server.sent) for name, tensor in sent.items()}


SETTINGS = {
    "FSDP_STATE_DICT_TYPE": ("SHARDED_STATE_DICT", "save_model would write no weights. Set it to FULL_STATE_DICT"),
    "FSDP_AUTO_WRAP_POLICY": ("NO_WRAP", "the critic would be in one unit with the policy"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("true", "each process has read, and but one would have read it"),
    "FSDP_OFFLOAD_PARAMS": ("true", "fsdp_offload_params=true: it was never tried"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("true", r"fsdp_activation_checkpointing.*gradient_checkpointing=True"),
    "FSDP_VERSION": ("1", "PPOTrainer runs on one device, with data parallelism or under FSDP2, not under FSDP1"),
}
OPTIONS = {
    "torch_compile": "torch_compile=True: it was never tried",
    "use_transformers_continuous_batching": "it samples with weights that are not whole",
}


def refused_to_begin(folder: Path) -> dict[str, Tensor]:
    """What each trainer of the package says where accelerate, and not its config, asks for what it cannot do."""
    for name, (value, message) in SETTINGS.items():
        before = FSDP2 | {"FSDP_VERSION": "2"} | ({"FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"} if value == "1" else {})
        os.environ.update(before | {name: value})
        with pytest.raises(ValueError, match=message):
            table_trainer(folder)
    os.environ.update(FSDP2)
    for name, message in OPTIONS.items():
        with pytest.raises(ValueError, match=message):
            table_trainer(folder, **{name: True}, rollout_func=None)
    with pytest.raises(ValueError, match=r"a generator is given the whole model.*Let TRL sample"):
        table_trainer(folder, generator=TransformersGenerator(), rollout_func=None)
    base = SharedBase(tiny_llama(byte_tokenizer()), byte_tokenizer())
    role = base.policy()
    with pytest.raises(
        ValueError, match=r"SharedBase with several roles runs on .*, not under FSDP2: it cuts the base"
    ):
        base.value_model()
    assert base.roles() == {"policy policy": role}
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    shard_on_cpu()
    target, what, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    results = globals()[what](target, **options)
    save_file(results, target / f"process-{torch.distributed.get_rank()}.safetensors")
    leave()
