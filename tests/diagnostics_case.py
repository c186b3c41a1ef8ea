"""A run of each trainer that RewardDiagnostics watches.

torchrun --nproc-per-node=2 diagnostics_case.py KIND FOLDER

watches it in two processes, and leaves what the first logged.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from self_training_case import PROMPTS
from tiny import ON_CPU, byte_tokenizer, tiny_llama
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from two_processes import leave

from trl_ext import (
    LengthIncentive,
    PPOConfig,
    PPOTrainer,
    RAFTConfig,
    RAFTTrainer,
    RepetitionPenalty,
    ReSTConfig,
    ReSTTrainer,
    Route,
    RoutedProduct,
)
from trl_ext.diagnostics import RewardDiagnostics

ROLLOUTS = {"num_generations": 4, "max_steps": 4}
GROWS = {"num_generations": 4, "num_stages": 3, "drop_truncated": False, "prompts_per_part": 3}
KINDS = {
    "ppo": (PPOTrainer, PPOConfig, ROLLOUTS | {"num_iterations": 1, "missing_eos_penalty": 0.25}),
    "grpo": (GRPOTrainer, GRPOConfig, ROLLOUTS),
    "rloo": (RLOOTrainer, RLOOConfig, ROLLOUTS | {"beta": 0.0}),
    "raft": (RAFTTrainer, RAFTConfig, GROWS),
    "rest": (
        ReSTTrainer,
        ReSTConfig,
        GROWS | {"thresholds": [0.0, 0.5], "selection": "percentile", "score_map": "none"},
    ),
}
PRODUCT = RoutedProduct((Route("open", (LengthIncentive(), RepetitionPenalty())),))


def vowels(completions, **columns):
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


def nearness(completions, wanted, **columns):
    """Gold: of a column of the data."""
    return [-abs(len(text) - want) + 0.5 * (text < "m") for text, want in zip(completions, wanted, strict=True)]


def make(kind: str, folder: str | Path, rewards=(PRODUCT, vowels), **changes):
    trainer, config, own = KINDS[kind]
    common = ON_CPU | {"per_device_train_batch_size": 8, "max_completion_length": 6}
    rows = {"prompt": PROMPTS, "query_type": ["open"] * 8, "wanted": list(range(8))}
    tokenizer = byte_tokenizer()
    return trainer(
        model=tiny_llama(tokenizer),
        reward_funcs=list(rewards),
        args=config(output_dir=str(folder), **common | own | changes),
        train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer,
    )


def watched(kind: str, folder: str | Path, *, resume: bool = False, gold=nearness, every: int = 1, **options):
    """A trained trainer with its callback."""
    trainer = make(kind, folder, **options)
    callback = RewardDiagnostics(trainer, gold=gold, show=False, every=every)
    trainer.add_callback(callback)
    trainer.train(**({"resume_from_checkpoint": True} if resume else {}))
    return trainer, callback


def looks_logged(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "diagnostics/copied" in entry]


def main() -> None:
    torch.set_num_threads(1)
    kind, folder = sys.argv[1:]
    trainer, callback = watched(kind, folder, per_device_train_batch_size=4)
    if trainer.accelerator.is_main_process:
        seen = (callback.diagnosis.first, callback.diagnosis.last)
        said = {"logged": looks_logged(trainer), "counts": [len(look.said) for look in seen]}
        Path(folder, "said.json").write_text(json.dumps(said))
    leave()


if __name__ == "__main__":
    main()
