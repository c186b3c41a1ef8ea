"""The stages of `train_7b_24gb.py`: each makes its trainer over one shared base."""

from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from train_7b_data import fitting_prompts, load_rows
from trl import SFTConfig, SFTTrainer

from trl_ext import (
    ImitationRewardConfig,
    ImitationRewardTrainer,
    PPOConfig,
    PPOTrainer,
    RAFTConfig,
    RAFTTrainer,
    SharedBase,
)
from trl_ext.memory_planning import MemoryPlan

HELD_OUT = 0.05  # of the pairs, for the reward model's accuracy


def on_gpu() -> bool:
    return torch.cuda.is_available()


def common(options, folder: Path, plan: MemoryPlan | None) -> dict:
    """What all trainers are told."""
    micro_batch = 1 if plan is None else plan.settings.micro_batch
    return {
        "output_dir": str(folder),
        "seed": options.seed,
        "bf16": on_gpu(),
        "use_cpu": not on_gpu(),
        "gradient_checkpointing": on_gpu(),
        "gradient_checkpointing_kwargs": {"use_reentrant": options.bits == 8},  # or 8-bit layers hold their inputs
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": options.batch // micro_batch,
        "logging_steps": 1,
        "save_steps": options.save_steps,
        "save_total_limit": 1,
        "report_to": "none",
    }


def lora(options) -> LoraConfig:
    return LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear")


def sft(base: SharedBase, options, folder: Path, plan: MemoryPlan | None):
    """Imitate the completions, on a new adapter."""
    args = SFTConfig(
        **common(options, folder, plan),
        learning_rate=options.sft_learning_rate,
        num_train_epochs=options.sft_epochs,
        max_length=options.prompt_length + options.completion_length,
    )
    data = load_rows(options.sft_data, "--sft-data", [["prompt", "completion"], ["text"], ["messages"]])
    return SFTTrainer(base.policy(lora(options)), args, train_dataset=data, processing_class=base.tokenizer)


def reward(base: SharedBase, options, folder: Path, plan: MemoryPlan | None):
    """Learn from the pairs, on a new adapter; some are held out."""
    args = ImitationRewardConfig(
        **common(options, folder, plan),
        learning_rate=options.reward_learning_rate,
        num_train_epochs=options.reward_epochs,
        imitation_coef=options.imitation_coef,
        max_length=options.prompt_length + options.completion_length,
        per_device_eval_batch_size=1 if plan is None else plan.settings.micro_batch,
    )
    pairs = load_rows(options.pairs, "--pairs", [["prompt", "chosen", "rejected"]])
    parts = pairs.train_test_split(max(1, int(HELD_OUT * len(pairs))), seed=0)
    trainer = ImitationRewardTrainer(
        base.reward_model(lora(options)).module,
        args,
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        processing_class=base.tokenizer,
        imitation_head=base.model.get_output_embeddings(),
    )
    left_out = len(pairs) - len(trainer.train_dataset) - len(trainer.eval_dataset)
    print(f"pairs: {len(pairs)}, of which {left_out} are longer than {args.max_length} tokens, or equal, and left out")
    return trainer


def prompts_of(base: SharedBase, options) -> Dataset:
    rows = load_rows(options.prompts, "--prompts", [["prompt"]])
    return fitting_prompts(rows, base.tokenizer, options.prompt_length)


def ppo(base: SharedBase, options, folder: Path, plan: MemoryPlan | None):
    """Go on from SFT's adapter; the critic begins as the reward model."""
    learned = options.output_dir / "reward"
    args = PPOConfig(
        **common(options, folder, plan),
        learning_rate=options.learning_rate,
        beta=options.beta,
        num_iterations=options.epochs,
        max_steps=options.rollouts * options.epochs,
        max_completion_length=options.completion_length,
    )
    return PPOTrainer(
        base.policy(init_from=options.output_dir / "sft"),
        base.reward_model(learned, batch_size=8 if plan is None else plan.settings.reward_batch),
        args,
        prompts_of(base, options),
        value_model=base.value_model(init_from=learned),
        processing_class=base.tokenizer,
    )


def raft(base: SharedBase, options, folder: Path, plan: MemoryPlan | None):
    """Go on from SFT's adapter."""
    prompts = prompts_of(base, options)
    args = RAFTConfig(
        **common(options, folder, plan),
        learning_rate=options.learning_rate,
        num_stages=options.stages,
        stage_batch_size=min(options.stage_prompts, len(prompts)),
        num_generations=options.samples,
        max_completion_length=options.completion_length,
        generation_batch_size=options.batch,
    )
    return RAFTTrainer(
        base.policy(init_from=options.output_dir / "sft"),
        base.reward_model(options.output_dir / "reward", batch_size=8 if plan is None else plan.settings.reward_batch),
        args,
        prompts,
        processing_class=base.tokenizer,
    )


STAGES: dict[str, Callable] = {"sft": sft, "reward": reward, "ppo": ppo, "raft": raft}
