"""The stages of `trl-ext demo`, each a call of one trainer: SFT, reward model, PPO."""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import ProgressCallback
from trl import SFTConfig, SFTTrainer

from trl_ext import (
    ImitationRewardConfig,
    ImitationRewardTrainer,
    LearnedReward,
    LengthIncentive,
    PPOConfig,
    PPOTrainer,
    R3Reward,
    RelevanceReward,
    RepetitionPenalty,
    Route,
    RoutedProduct,
)
from trl_ext.demo.answers import preference_rows, sample_questions, sft_rows
from trl_ext.demo.world import ASSETS, Entity, answered_right

COMPLETION_LENGTH = 48  # tokens
TOP_RELEVANCE = 1.3  # what a right answer reaches with the demo's encoder; Contriever's is 3.5 in the paper
JUDGE_WEIGHT = 0.05  # of the reward model's score beside the product of factors


@dataclass(frozen=True)
class Scale:
    """How much of everything: rows of SFT, preference pairs, batches of rollouts and completions in each."""

    sft_rows: int
    pairs: int
    rollouts: int
    batch: int
    held_out: int


FULL = Scale(sft_rows=1600, pairs=1600, rollouts=40, batch=64, held_out=256)
QUICK = Scale(sft_rows=800, pairs=640, rollouts=12, batch=48, held_out=128)


class QuietProgress(ProgressCallback):
    """Trainer's progress bar without its logs."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


def supervised(world: list[Entity], folder: Path, scale: Scale, *, seed: int) -> Path:
    """Fine-tune the shipped policy to answer questions, from answers of mixed quality."""
    rows = Dataset.from_list(sft_rows(world, count=scale.sft_rows, seed=seed))
    args = SFTConfig(**_common(folder, seed), per_device_train_batch_size=32, learning_rate=1e-3, max_length=128)
    return _trained(SFTTrainer(str(ASSETS / "policy"), args, train_dataset=rows), folder)


def reward_model(
    world: list[Entity], policy: Path, folder: Path, scale: Scale, *, imitation_coef: float, seed: int
) -> Path:
    """Learn from preference pairs, starting from the fine-tuned policy's trunk."""
    rows = preference_rows(world, held_out=False, count=scale.pairs, seed=seed)
    pairs = Dataset.from_list(rows).select_columns(["prompt", "chosen", "rejected"])
    args = ImitationRewardConfig(
        **_common(folder, seed),
        imitation_coef=imitation_coef,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        max_length=128,
    )
    return _trained(ImitationRewardTrainer(str(policy), args, train_dataset=pairs), folder)


def ppo(
    world: list[Entity], policy: Path, judge: Path, folder: Path, scale: Scale, *, product: RoutedProduct, seed: int
) -> list[dict]:
    """PPO on a product of factors and the reward model; what it logged.

    R³ and the share of closed questions answered right are watched in every run, at weight 0.
    """
    watched = [closed_right] if isinstance(product, R3Reward) else [closed_right, r3()]
    questions = sample_questions(world, held_out=False, count=scale.rollouts * scale.batch, seed=seed)
    args = PPOConfig(
        **_common(folder, seed, lr_scheduler_type="constant", logging_steps=4),
        per_device_train_batch_size=scale.batch,
        max_steps=4 * scale.rollouts,
        max_completion_length=COMPLETION_LENGTH,
        learning_rate=3e-4,
        beta=0.02,
        reward_weights=[1.0, JUDGE_WEIGHT] + [0.0] * len(watched),
    )
    trainer = PPOTrainer(
        str(policy),
        [product, learned(judge), *watched],
        args,
        Dataset.from_list(questions),
    )
    _trained(trainer, folder)
    return trainer.state.log_history


def r3() -> R3Reward:
    """R³ with the demo's encoder."""
    encoder = RelevanceReward(str(ASSETS / "encoder"), device="cpu")
    return R3Reward(max_completion_length=COMPLETION_LENGTH, relevance=encoder, top_relevance=TOP_RELEVANCE)


def learned(judge: Path) -> LearnedReward:
    """The trained reward model as a reward."""
    return LearnedReward(str(judge), batch_size=64, device="cpu")


def control() -> RoutedProduct:
    """R³ without routing or relevance: length × no repetition, whatever was asked."""
    factors = (LengthIncentive(), RepetitionPenalty())
    return RoutedProduct((Route("open", factors), Route("closed", factors)))


def closed_right(completions, attribute, answer, **columns) -> list[float | None]:
    """1 for a closed question answered right, 0 for one answered wrong, None for an open one."""
    rows = zip(completions, attribute, answer, strict=True)
    return [None if a is None else float(answered_right(c, attribute=n, answer=a)) for c, n, a in rows]


def _common(folder: Path, seed: int, **changes) -> dict:
    return {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "lr_scheduler_type": "cosine",
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1000,
        "seed": seed,
    } | changes


def _trained(trainer, folder: Path) -> Path:
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(QuietProgress)
    trainer.train()
    trainer.save_model(folder)
    return folder
