"""A base small enough to share between roles in a second, plain or quantised, and what a role says of fixed inputs."""

import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import ON_CPU, byte_tokenizer, tiny_llama

from trl_ext import SharedBase

BITS = [None, 8, 4]
SIZES = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.2}  # 4-bit weights come in blocks of 64
IDS = torch.tensor([byte_tokenizer()("hello world")["input_ids"], byte_tokenizer()("shared base")["input_ids"]])
PAIRS = Dataset.from_list([{"prompt": f"item {i}: ", "chosen": "good " * 2, "rejected": "bad " * 3} for i in range(8)])
TEXTS = Dataset.from_list([{"prompt": f"item {i}: ", "completion": "good"} for i in range(8)])


def base_path(folder, **changes) -> str:
    """A folder with a tiny Llama and its tokenizer."""
    path = folder / "base"
    tiny_llama(byte_tokenizer(), **SIZES | changes).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


def lora(**changes) -> LoraConfig:
    """An adapter that is not the identity, so that its outputs show which one is at work."""
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "init_lora_weights": False} | changes)


def four_roles(base: SharedBase, **lora_changes) -> dict:
    """A policy, two reward models and a value model."""
    torch.manual_seed(1)
    return {
        "policy": base.policy(lora(**lora_changes)),
        "reward": base.reward_model(lora(**lora_changes)).module,
        "second": base.reward_model(lora(**lora_changes), name="second", seed=1).module,
        "value": base.value_model(lora(**lora_changes)),
    }


@torch.no_grad()
def outputs(role) -> torch.Tensor:
    """What a model in eval mode answers; its mode is left as it was."""
    training = role.training
    logits = role.eval()(IDS).logits
    role.train(training)
    return logits


def trained_names(role) -> list[str]:
    return [name for name, parameter in role.named_parameters() if parameter.requires_grad]


def quiet(folder, **changes) -> dict:
    """Options that every trainer's config takes: two steps on the CPU."""
    given = {name: value for name, value in ON_CPU.items() if name != "gradient_checkpointing"}
    return given | {"output_dir": str(folder), "max_steps": 2, "learning_rate": 1e-3} | changes
