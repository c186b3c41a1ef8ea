"""The stages of `trl-ext demo`, each a call of one trainer: SFT, reward model, PPO, RAFT, ReST."""

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
    RAFTConfig,
    RAFTTrainer,
    RelevanceReward,
    RepetitionPenalty,
    ReSTConfig,
    ReSTTrainer,
    Route,
    RoutedProduct,
)
from trl_ext.demo.answers import preference_rows, sample_questions, sft_rows
from trl_ext.demo.world import ASSETS, Entity, answered_right
from trl_ext.self_training.run_folder import forget_run

COMPLETION_LENGTH = 48  # tokens
TOP_RELEVANCE = 1.3  # what a right answer reaches with the demo's encoder; Contriever's is 3.5 in the paper
SAMPLES = 8  # answers to each question of a Grow
JUDGE_WEIGHT = 0.05  # of the reward model's score beside the product of factors


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Args:
        sft_rows, pairs: Rows of SFT, preference pairs.
        rollouts, batch: PPO's batches of rollouts, completions in each.
        stages, stage_batch: RAFT's stages (ReST has half as many Grows, at least 2), prompts in each.
        held_out: Questions that the policies are compared on.
    """

    sft_rows: int
    pairs: int
    rollouts: int
    batch: int
    stages: int
    stage_batch: int
    held_out: int

    @property
    def grows(self) -> int:
        """Of ReST."""
        return max(2, self.stages // 2)


FULL = Scale(sft_rows=1600, pairs=1600, rollouts=40, batch=64, stages=6, stage_batch=192, held_out=256)
QUICK = Scale(sft_rows=800, pairs=640, rollouts=12, batch=48, stages=2, stage_batch=96, held_out=128)


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
    return reward_model_of(rows, policy, folder, imitation_coef=imitation_coef, seed=seed)


def reward_model_of(rows: list[dict], policy: Path, folder: Path, *, imitation_coef: float, seed: int) -> Path:
    """The same from pairs that one has, with soft labels where they say `chosen_probability`."""
    read = ("prompt", "chosen", "rejected", "chosen_probability")
    pairs = Dataset.from_list([{name: row[name] for name in read if name in row} for row in rows])
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
    args = PPOConfig(
        **_common(folder, seed, lr_scheduler_type="constant", logging_steps=4),
        per_device_train_batch_size=scale.batch,
        max_steps=4 * scale.rollouts,
        max_completion_length=COMPLETION_LENGTH,
        learning_rate=3e-4,
        beta=0.02,
        reward_weights=[1.0, JUDGE_WEIGHT] + [0.0] * len(watched),
    )
    trainer = PPOTrainer(str(policy), [product, learned(judge), *watched], args, _questions(world, scale, seed))
    _trained(trainer, folder)
    return trainer.state.log_history


def raft(world: list[Entity], policy: Path, judge: Path, folder: Path, scale: Scale, *, seed: int) -> Path:
    """RAFT on R³ and the reward model: the best of eight answers to each question, stage by stage."""
    args = RAFTConfig(**_self_training(folder, scale, seed), num_stages=scale.stages)
    forget_run(folder)  # a demo that is run again begins anew
    return _trained(RAFTTrainer(str(policy), rewards(judge), args, _questions(world, scale, seed)), folder)


def rest(world: list[Entity], policy: Path, judge: Path, folder: Path, scale: Scale, *, seed: int) -> Path:
    """ReST on the same: two Improves after each Grow, on the upper third and sixth of each question's answers.

    Percentiles, since what R³ pays for an open answer and for a closed one cannot be compared.
    """
    args = ReSTConfig(
        **_self_training(folder, scale, seed),
        num_stages=scale.grows,
        selection="percentile",
        thresholds=[0.66, 0.83],
        score_map="none",
        temperature=1.0,
    )
    forget_run(folder)  # a demo that is run again begins anew
    return _trained(ReSTTrainer(str(policy), rewards(judge), args, _questions(world, scale, seed)), folder)


def _self_training(folder: Path, scale: Scale, seed: int) -> dict:
    return _common(folder, seed, lr_scheduler_type="linear") | {
        "num_train_epochs": 3.0,
        "stage_batch_size": scale.stage_batch,
        "num_generations": SAMPLES,
        "max_completion_length": COMPLETION_LENGTH,
        "per_device_train_batch_size": 32,
        "learning_rate": 5e-4,
        "reward_weights": [1.0, JUDGE_WEIGHT, 0.0],  # closed_right is watched
    }


def _questions(world: list[Entity], scale: Scale, seed: int) -> Dataset:
    return Dataset.from_list(sample_questions(world, held_out=False, count=scale.rollouts * scale.batch, seed=seed))


def r3() -> R3Reward:
    """R³ with the demo's encoder."""
    encoder = RelevanceReward(str(ASSETS / "encoder"), device="cpu")
    return R3Reward(max_completion_length=COMPLETION_LENGTH, relevance=encoder, top_relevance=TOP_RELEVANCE)


def rewards(judge: Path) -> list:
    """What RAFT and ReST are paid, and at last what is watched."""
    return [r3(), learned(judge), closed_right]


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
