"""The stages of `from_nothing.py` that train or sample, each a call of one trainer or generator."""

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from trl_ext import (
    ImitationRewardConfig,
    ImitationRewardTrainer,
    LearnedReward,
    PPOConfig,
    PPOTrainer,
    RAFTConfig,
    RAFTTrainer,
    TransformersGenerator,
)
from trl_ext.demo import ASSETS
from trl_ext.generation import Part, Policy, Sampling
from trl_ext.self_training import forget_run
from trl_ext.sequences import text_of
from trl_ext.trainer_kit import stable_seed

SAMPLES = 6  # answers of which neighbours are compared
BATCH = 32
RATES = {"sft": 1e-3, "reward": 1e-3, "raft": 2e-4, "ppo": 3e-4, "dpo": 1e-4}  # of the demo's small policy
OWN_RATES = {"sft": 2e-5, "reward": 1e-5, "raft": 1e-5, "ppo": 1e-6, "dpo": 1e-6}


def supervised(options: argparse.Namespace, rows: Dataset, folder: Path) -> Path:
    """The start: the policy, fine-tuned on the made instances."""
    args = SFTConfig(**settings(options, folder, "sft", epochs=4), max_length=256)
    return trained(SFTTrainer(options.model or str(ASSETS / "policy"), args, train_dataset=rows), folder)


def sampled_pairs(options: argparse.Namespace, policy: Path, prompts: Dataset, number: int) -> Dataset:
    """Answers of the policy to each prompt, in pairs that differ; `number`: of the round."""
    tokenizer, model = AutoTokenizer.from_pretrained(policy), AutoModelForCausalLM.from_pretrained(policy).eval()
    texts = prompts["prompt"][: 8 if options.quick else None]
    sampling = Sampling(SAMPLES, options.completion_length, seed=stable_seed(options.seed, "pairs", number))
    part = Part(0, tuple(range(len(texts))), tuple(texts))
    [(_, samples)] = TransformersGenerator().generate([part], sampling, Policy(model, tokenizer))
    found = {
        (sample["prompt"], *sorted(map(text_of, (sample["completion"], other["completion"]))))
        for sample, other in pairwise(samples)
        if sample["row"] == other["row"]
    }
    pairs = [pair for pair in sorted(found) if pair[1].strip() and pair[2].strip() and pair[1] != pair[2]]
    return Dataset.from_list(
        [dict(zip(("prompt", "completion_1", "completion_2"), pair, strict=True)) for pair in pairs]
    )


def reward_model(options: argparse.Namespace, pairs: list[dict], start: Path, folder: Path) -> LearnedReward:
    """Learns from soft labels, from the start's trunk."""
    rows = Dataset.from_list(pairs).select_columns(["prompt", "chosen", "rejected", "chosen_probability"])
    args = ImitationRewardConfig(**settings(options, folder, "reward", epochs=4), max_length=256, imitation_coef=0.0)
    return LearnedReward(str(trained(ImitationRewardTrainer(str(start), args, train_dataset=rows), folder)))


def raft(options: argparse.Namespace, judge: LearnedReward, prompts: Dataset, policy: Path, folder: Path) -> Path:
    """The better half of eight answers to each prompt by the reward model, once: of the best alone many please it and are wrong."""
    args = RAFTConfig(
        **settings(options, folder, "raft"),
        num_stages=1,
        num_generations=8,
        acceptance_ratio=0.5,
        improve_epochs=1.0,
        stage_batch_size=8 if options.quick else None,
        max_completion_length=options.completion_length,
    )
    forget_run(folder)
    return trained(RAFTTrainer(str(policy), [judge], args, prompts), folder)


def ppo(options: argparse.Namespace, judge: LearnedReward, prompts: Dataset, policy: Path, folder: Path) -> Path:
    """PPO with the reward model, and a price on leaving the policy that the round began with."""
    args = PPOConfig(
        **settings(options, folder, "ppo")
        | {"max_steps": 4 if options.quick else 120, "lr_scheduler_type": "constant"},
        max_completion_length=options.completion_length,
        beta=0.05,
    )
    return trained(PPOTrainer(str(policy), [judge], args, prompts), folder)


def dpo(options: argparse.Namespace, pairs: list[dict], policy: Path, folder: Path) -> Path:
    """TRL's DPO on the pairs, whose labels are hard here."""
    rows = Dataset.from_list(pairs).select_columns(["prompt", "chosen", "rejected"])
    args = DPOConfig(**settings(options, folder, "dpo", epochs=2), max_length=256)
    return trained(DPOTrainer(str(policy), args=args, train_dataset=rows), folder)


def settings(options: argparse.Namespace, folder: Path, stage: str, *, epochs: float | None = None) -> dict:
    """What all trainers are told."""
    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "seed": options.seed,
        "learning_rate": (OWN_RATES if options.model else RATES)[stage],
        "per_device_train_batch_size": 8 if options.quick else BATCH,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "use_cpu": not torch.accelerator.is_available(),
        "gradient_checkpointing": gpu,
        "dataloader_pin_memory": gpu,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 4,
        "disable_tqdm": True,
    } | length_of(stage, epochs, is_quick=options.quick)


def length_of(stage: str, epochs: float | None, *, is_quick: bool) -> dict:
    """RAFT's own stages say how long it is."""
    if stage == "raft":
        return {}
    return {"max_steps": 2} if is_quick else {"num_train_epochs": epochs or 1.0}


def trained(trainer: Trainer, folder: Path) -> Path:
    trainer.train()
    trainer.save_model(str(folder))
    return folder
