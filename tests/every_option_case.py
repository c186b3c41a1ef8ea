"""What one tiny run of each trainer did, for every option that our configs add or redefine to show that it changes it."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from ppo_case import ppo_trainer
from self_training_case import even_letters, trainer
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model, tokenizer_with_options
from transformers import Trainer

from trl_ext import (
    ImitationRewardConfig,
    ImitationRewardTrainer,
    PPOConfig,
    RAFTConfig,
    RAFTTrainer,
    ReSTConfig,
    ReSTTrainer,
    SelfTrainingConfig,
)
from trl_ext.self_training.self_training_trainer import SelfTrainingTrainer

TIMES = ("runtime", "per_second", "step_time", "reward_time", "flos")
PROMPTS = ["go", "why?", "yes", "tell me more"]
TOKENIZER = byte_tokenizer()
TEXT = Dataset.from_dict({"text": ["the first line", "a second"]})
HELD_OUT = Dataset.from_dict({"prompt": ["where?"]})
LETTERS = [chr(code) for code in range(33, 127)]  # of which the tokenizer has a token each


@dataclass(frozen=True)
class Change:
    """A value of an option that is not its base run's, and what of the run it changes.

    What none of these shows, e.g. what only another run in the same folder would, gets its own part of `outcome`.

    Args:
        value: The other value.
        shows_in: "weights", "log", "passes" (how often the policy was called), "calls" (how often the reward was), or
            "error".
        beside: Options that both runs have, which the option needs to do something.
        along: Options that come with the value.
    """

    value: Any
    shows_in: str = "weights"
    beside: dict[str, Any] = field(default_factory=dict)
    along: dict[str, Any] = field(default_factory=dict)


def own_options(config: type) -> list[str]:
    return list(inspect.get_annotations(config))


def outcome(run: Callable[..., Trainer], folder: Path, **options) -> dict[str, Any]:
    """Train; what came of it. Options that are functions without parameters are called first."""
    seen: dict[str, Any] = {"error": None, "passes": 0, "calls": 0}
    options = {
        name: make() if callable(make) and name in ("model", "reward_funcs") else make
        for name, make in options.items()
    }
    try:
        made = run(folder, seen, **options)
        made.model.register_forward_hook(lambda *_: seen.update(passes=seen["passes"] + 1))
        made.train()
    except ValueError as error:
        return seen | {"error": str(error)}
    parts = [made.model, *([made.critic.module] if hasattr(made, "critic") else [])]
    weights = [parameter.detach().flatten() for part in parts for parameter in part.parameters()]
    log = [
        {k: v for k, v in entry.items() if not any(time in k for time in TIMES)} for entry in made.state.log_history
    ]
    return seen | {"weights": torch.cat(weights), "log": repr(log)}


def counted(reward: Callable, seen: dict[str, Any]) -> Callable:
    def score(completions, **columns):
        seen["calls"] += 1
        return reward(completions=completions, **columns)

    return score


def ppo(folder: Path, seen: dict, *, reward_funcs: Callable = even_letters, **options) -> Trainer:
    """Three batches of rollouts, a step each: the first has KL 0, and moves β for the second."""
    settings = {
        "max_steps": 3,
        "num_iterations": 1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
    }
    settings |= {"learning_rate": 0.05, "per_device_train_batch_size": 4, "prompts": PROMPTS, "seed": 1}
    return ppo_trainer(folder, reward_funcs=counted(reward_funcs, seen), **settings | options)


def self_training(cls: type, **base) -> Callable[..., Trainer]:
    """One Grow and an Improve of two steps, unless options say otherwise."""

    def run(folder: Path, seen: dict, *, reward_funcs: Callable = even_letters, **options) -> Trainer:
        settings = {"num_stages": 1, "improve_steps": 2, "max_completion_length": 4, "prompts": PROMPTS} | base
        return trainer(folder, cls, reward_funcs=counted(reward_funcs, seen), **settings | options)

    return run


def imitation(folder: Path, seen: dict, **options) -> Trainer:
    rows = [{"prompt": "item ", "chosen": "good " * n, "rejected": "bad "} for n in (1, 2)]
    settings = {"output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": 2, "max_length": 64}
    settings |= {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    model = tiny_reward_model(TOKENIZER, tie_word_embeddings=True)
    args = ImitationRewardConfig(**settings | {"learning_rate": 1e-2, "gradient_checkpointing": False} | options)
    return ImitationRewardTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=TOKENIZER)


# Rewards and models that some options need


def alike_for_one(prompts, completions, **columns):
    scores = even_letters(completions)
    return [1.0 if prompt == "go" else score for prompt, score in zip(prompts, scores, strict=True)]


def even_letters_said(completions, **columns):
    return even_letters([messages[-1]["content"] for messages in completions])


def level(completions, **columns):
    return [1.0] * len(completions)


def one_nan(completions, **columns):
    return [math.nan, *even_letters(completions)[1:]]


def falling() -> Callable:
    """A reward that gives less at each evaluation."""
    evaluations = []

    def score(prompts, completions, **columns):
        if prompts[0] != "where?":
            return even_letters(completions)
        evaluations.append(prompts)
        return [-float(len(evaluations))] * len(prompts)

    return score


def rarely_drawn(prompts, trainer):
    """Completions that their sampler hardly ever gives, as it says."""
    ids = [[20 + i, 31, 42] for i in range(len(prompts))]
    return {"prompt_ids": [[5]] * len(ids), "completion_ids": ids, "logprobs": [[-7.0] * 3] * len(ids)}


def with_dropout():
    return tiny_llama(TOKENIZER, attention_dropout=0.5)


CRITIC_STEPS = {"num_iterations": 3}  # the first step of a batch of rollouts has the values of its sampling
ADAPTIVE = {"adaptive_kl": True, "kl_target": 1.0, "kl_estimator": "k3"}  # a KL that is never below 0
RISING = {"selection": "percentile", "thresholds": [0.0, 0.5]}
MAPPED = {"selection": "threshold", "thresholds": [0.5], "score_map": "fixed"}
EVALUATED = {
    "eval_dataset": HELD_OUT, "eval_strategy": "steps", "eval_steps": 1, "improve_steps": 4, "reward_funcs": falling,
}  # fmt: skip
CHAT = {
    "prompts": [[{"role": "user", "content": prompt}] for prompt in PROMPTS],
    "processing_class": tokenizer_with_options(),
    "reward_funcs": lambda: even_letters_said,
}
ANSWERS = {"columns": {"completion": ["bdf", "hhh", "jj", "nn"]}}
FIXED = "error"  # every other value is refused

PPO = {
    "accept_changes": Change(["no_such_option"], "error"),  # what it accepts: test_run_changes.py
    "learning_rate": Change(0.1),
    "num_generations": Change(2),
    "num_iterations": Change(3),
    "disable_dropout": Change(False, beside={"model": with_dropout}),
    "scale_rewards": Change("group", FIXED),
    "beta": Change(0.5),
    "kl_estimator": Change("k3"),
    "adaptive_kl": Change(True, "log", along={"kl_target": 1.0}),
    "kl_target": Change(1e-9, "log", beside=ADAPTIVE),
    "kl_horizon": Change(10, "log", beside=ADAPTIVE),
    "missing_eos_penalty": Change(1.0, "log"),
    "stop_tokens": Change(LETTERS),
    "score_scaling": Change(False),
    "score_clip": Change(0.1),
    "gamma": Change(0.5),
    "lam": Change(0.5),
    "whiten_advantages": Change(False),
    "sampling_weight_cap": Change(1.5, beside={"rollout_func": rarely_drawn}),
    "ptx_coef": Change(1.0, along={"ptx_dataset": TEXT}),
    "ptx_max_length": Change(2, beside={"ptx_coef": 1.0, "ptx_dataset": TEXT}),
    "value_clip": Change(1e-6, beside=CRITIC_STEPS),
    "value_coef": Change(1.0),
    "critic_learning_rate": Change(0.01),
    "critic_warmup_rollouts": Change(1),
    "detach_critic": Change(False),
}

SELF_TRAINING = {
    "accept_changes": Change(["no_such_option"], "error"),  # what it accepts: test_run_changes.py
    "learning_rate": Change(1e-3),
    "max_length": Change(64, FIXED),
    "completion_only_loss": Change(False, FIXED),
    "num_train_epochs": Change(5.0, FIXED),
    "lr_scheduler_type": Change("constant"),
    "num_stages": Change(2),
    "stage_batch_size": Change(2),
    "improve_epochs": Change(3.0, beside={"improve_steps": None}),
    "improve_steps": Change(3),
    "improve_lr_factor": Change(0.5, beside=RISING),
    "improve_patience": Change(1, "log", beside=EVALUATED),
    "keep_best": Change(True, beside=EVALUATED),
    "fresh_optimizer": Change(False, beside={"num_stages": 2}),
    "restart_from_base": Change(True, beside={"num_stages": 2}),
    "level_stages": Change(1, "log", beside={"num_stages": 3, "reward_funcs": lambda: level}),
    "num_generations": Change(2),
    "max_completion_length": Change(3),
    "temperature": Change(0.5),
    "top_p": Change(0.3),
    "top_k": Change(3),
    "min_p": Change(0.5),
    "repetition_penalty": Change(3.0),
    "generation_batch_size": Change(1, "passes"),
    "prompts_per_part": Change(1, "calls"),
    "chat_template_kwargs": Change({"shout": True}, beside=CHAT),
    "reward_weights": Change([2.0], "log"),
    "invalid_scores": Change("drop", "error", beside={"reward_funcs": lambda: one_nan}),
    "beta": Change(100.0, "log", beside={"num_stages": 2}),
    "kl_coef": Change(100.0, "log", beside={"num_stages": 2}),
    "score_map": Change("grow", "log", beside=MAPPED),
    "score_range": Change([0.0, 0.5], "log", beside=MAPPED),
    "selection": Change("global"),
    "acceptance_ratio": Change(1.0),
    "thresholds": Change([0.1], beside={"selection": "percentile", "thresholds": [0.9]}),
    "max_kept_per_prompt": Change(1, beside={"selection": "percentile", "thresholds": [0.0]}),
    "drop_truncated": Change(True, "error"),  # none of them ends
    "drop_duplicates": Change(False, "log", beside={"temperature": 0.0, "acceptance_ratio": 1.0}),
    "drop_alike": Change(True, beside={"reward_funcs": lambda: alike_for_one}),
    "random_selection": Change(True),
    "mix_dataset": Change(True, "log", beside=ANSWERS),
    "importance_clip": Change(0.2),
}

# What RAFT's and ReST's configs redefine: the option once more, under their own trainer.
RAFT = {
    "stage_batch_size": Change(2),
    "level_stages": Change(1, "log", beside={"num_stages": 3, "reward_funcs": lambda: level}),
}
REST = {
    "num_stages": Change(2),
    "improve_lr_factor": Change(0.9),
    "selection": Change("percentile"),
    "score_map": Change("grow"),
    "thresholds": Change([0.3]),
    "max_kept_per_prompt": Change(1),
    "mix_dataset": Change(False, "log", beside=ANSWERS),
    "temperature": Change(0.3),
    "top_k": Change(3),
    "num_generations": Change(2),
}
IMITATION = {
    "accept_changes": Change(["no_such_option"], "error"),  # what it accepts: test_run_changes.py
    "imitation_coef": Change(1.0),
    "imitation_head": Change("other"),
}

RUNS = {
    PPOConfig: (ppo, PPO),
    SelfTrainingConfig: (self_training(SelfTrainingTrainer), SELF_TRAINING),
    RAFTConfig: (self_training(RAFTTrainer), RAFT),
    ReSTConfig: (self_training(ReSTTrainer, thresholds=[0.2, 0.4]), REST),
    ImitationRewardConfig: (imitation, IMITATION),
}
