"""A run of each trainer with checkpoints, small enough to be killed, damaged, moved and gone on with."""

from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import ON_CPU, byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from trl_ext import (
    ImitationRewardConfig,
    ImitationRewardTrainer,
    PPOConfig,
    PPOTrainer,
    RAFTConfig,
    RAFTTrainer,
    ReSTConfig,
    ReSTTrainer,
)

STEPS = 4
PROMPTS = [f"say {i}" for i in range(16)]
KINDS = ("ppo", "raft", "reward")


def even_letters(completions, **columns):
    return [float(sum(ord(letter) % 2 == 0 for letter in text)) for text in completions]


def pairs() -> Dataset:
    rows = [{"prompt": f"item {i}: ", "chosen": "good " * (1 + i % 3), "rejected": "bad " * 3} for i in range(16)]
    return Dataset.from_list(rows)


def settings_of(kind: str) -> tuple[type, type, dict, dict]:
    """Trainer, config, and what each takes besides what is common to all."""
    generating = {"reward_funcs": even_letters, "train_dataset": Dataset.from_dict({"prompt": PROMPTS})}
    return {
        "ppo": (
            PPOTrainer,
            PPOConfig,
            generating,
            {"max_steps": STEPS, "num_iterations": 2, "max_completion_length": 4},
        ),
        "raft": (
            RAFTTrainer,
            RAFTConfig,
            generating,
            {"num_stages": 2, "improve_steps": 2, "max_completion_length": 4, "drop_truncated": False},
        ),
        "rest": (
            ReSTTrainer,
            ReSTConfig,
            generating,
            {
                "num_stages": 1,
                "improve_steps": 2,
                "thresholds": [0.0, 0.5],
                "selection": "percentile",
                "score_map": "none",
            }
            | {"max_completion_length": 4, "drop_truncated": False},
        ),
        "reward": (
            ImitationRewardTrainer,
            ImitationRewardConfig,
            {"train_dataset": pairs()},
            {"max_steps": STEPS, "max_length": 256},
        ),
    }[kind]


def make(kind: str, folder: str | Path, *, model=None, lora: bool = False, parts: dict | None = None, **changes):
    """A trainer of `STEPS` steps that saves after each; `changes` are its config's, `parts` its own."""
    trainer, config, own, settings = settings_of(kind)
    tokenizer = byte_tokenizer()
    tiny = tiny_reward_model if kind == "reward" else tiny_llama
    common = ON_CPU | {"save_strategy": "steps", "save_steps": 1, "logging_steps": 10}
    return trainer(
        model=tiny(tokenizer, tie_word_embeddings=True) if model is None else model,
        args=config(str(folder), **common | settings | changes),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type=TASKS[kind]) if lora else None,
        **own | (parts or {}),
    )


def local_base(folder: Path, kind: str):
    """A model that was loaded from a folder."""
    tokenizer = byte_tokenizer()
    (tiny_reward_model if kind == "reward" else tiny_llama)(tokenizer, tie_word_embeddings=True).save_pretrained(
        folder
    )
    auto = AutoModelForSequenceClassification if kind == "reward" else AutoModelForCausalLM
    return auto.from_pretrained(folder)


TASKS = {"ppo": "CAUSAL_LM", "raft": "CAUSAL_LM", "rest": "CAUSAL_LM", "reward": "SEQ_CLS"}


def trained(trainer) -> dict[str, torch.Tensor]:
    """Weights and moments, the critic's too."""
    named = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    critic = trainer.critic.parameters() if isinstance(trainer, PPOTrainer) else []
    named |= {f"critic.{i}": p.detach().clone() for i, p in enumerate(critic)}
    moments = trainer.optimizer.state_dict()["state"]
    return named | {f"moment.{i}.{k}": v for i, state in moments.items() for k, v in state.items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
