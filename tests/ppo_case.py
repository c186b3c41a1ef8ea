"""A PPO run small enough to look at every number of."""

import inspect
from dataclasses import fields

import pytest
import torch
from datasets import Dataset
from tiny import TRAINING, byte_tokenizer, tiny_llama
from trl import GRPOTrainer

from trl_ext import PPOConfig, PPOTrainer
from trl_ext.trainer_kit.overrides import outputs_of

several_end_tokens = pytest.mark.skipif(
    "eos_token_ids" not in inspect.getsource(GRPOTrainer.__init__), reason="this TRL knows one end token only"
)
CONFIG_FIELDS = {field.name for field in fields(PPOConfig)}
PROMPTS = ["say it", "why?", "tell me more", "go"] * 4


def even_letters(completions, **columns):
    """Score: how many characters of a completion have an even code. About half do at the start."""
    return [float(sum(ord(letter) % 2 == 0 for letter in text)) for text in completions]


def ppo_trainer(
    folder, *, model=None, reward_funcs=even_letters, prompts=PROMPTS, columns=None, **options
) -> PPOTrainer:
    """A trainer on the CPU; `options` go to PPOConfig or to PPOTrainer, wherever they belong."""
    settings = TRAINING | {"output_dir": str(folder), "max_completion_length": 5, "max_steps": 2}
    settings |= {name: options.pop(name) for name in list(options) if name in CONFIG_FIELDS}
    tokenizer = options.pop("processing_class", None) or byte_tokenizer()
    return PPOTrainer(
        model=tiny_llama(tokenizer) if model is None else model,
        reward_funcs=reward_funcs,
        args=PPOConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": prompts} | (columns or {})),
        processing_class=tokenizer,
        **options,
    )


def rollout_of(trainer, rows=None) -> dict[str, torch.Tensor]:
    """A batch of rollouts in training mode, as the trainer makes them before any update."""
    trainer.model.train()
    return trainer._generate_and_score_completions(rows or [{"prompt": prompt} for prompt in PROMPTS[:4]])


def scored_rollout_of(trainer, rows=None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The same, and the score of each row."""
    with outputs_of(trainer.walk, "scores") as scores:
        rollout = rollout_of(trainer, rows)
    return rollout, scores[0]


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]
