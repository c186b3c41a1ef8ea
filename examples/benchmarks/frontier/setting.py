"""What all arms of one seed share: the policy after SFT, one proxy that pays, one gold that pays nobody, and prompts."""

import copy
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from examples.benchmarks.ppo.runs import renamed
from examples.benchmarks.reward_models.bon_models import MEMBERS, PAIRS, halves, made, with_flips
from trl_ext import LearnedReward, evaluate
from trl_ext.demo import stages
from trl_ext.demo.answers import preference_rows, sample_questions
from trl_ext.demo.world import load_world, questions

FLIPPED = 0.25  # of the proxy's pairs
TOKENS = stages.COMPLETION_LENGTH
PROMPTS = 12_800  # to learn from, with repeats


@dataclass
class Setting:
    """Of one seed.

    Args:
        start: Path of the policy after SFT, which KL is measured to.
        proxy, gold: Reward models of two halves of the people; all arms are paid by the proxy alone.
        prompts: Training questions about the proxy's half, `prompt` and what grades them.
        held_out: All questions about that half which no training ever sees, SFT and the reward models' included.
        pairs: The pairs that the proxy has learned from, wrong labels included.
        seed: Of data, order, sampling.
    """

    start: Path
    proxy: LearnedReward
    gold: LearnedReward
    prompts: Dataset
    held_out: Dataset
    pairs: Dataset
    seed: int

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.start)


def setting_of(folder: Path, seed: int) -> Setting:
    """Made once, and kept in the folder."""
    models, (_, half) = made(folder / "models", seed=seed, flipped=FLIPPED), halves(load_world())
    pool = preference_rows(half, held_out=False, count=PAIRS["member"] * MEMBERS, seed=seed + 1)
    held_out = [row | {"as_continued": " " + row["reference"]} for row in questions(half, held_out=True)]
    return Setting(
        models.policy,
        stages.learned(models.control),
        stages.learned(models.gold),
        Dataset.from_list(sample_questions(half, held_out=False, count=PROMPTS, seed=seed)),
        Dataset.from_list(held_out),
        Dataset.from_list(with_flips(pool, FLIPPED, seed=seed)).select_columns(["prompt", "chosen", "rejected"]),
        seed,
    )


class Look:
    """Measures a policy on the held-out questions; its samples are the same for the same policy.

    Args:
        setting: Of the seed.
        samples: Answers to each question.
    """

    def __init__(self, setting: Setting, *, samples: int):
        self.setting, self.samples = setting, samples
        self.start, self.tokenizer = AutoModelForCausalLM.from_pretrained(setting.start), setting.tokenizer()
        self.rewards = [renamed(setting.proxy, "proxy"), renamed(setting.gold, "gold"), stages.closed_right]

    def __call__(self, model) -> dict[str, float]:
        found = evaluate(
            model,
            self.setting.held_out,
            self.rewards,
            tokenizer=copy.deepcopy(self.tokenizer),
            reference=self.start,
            references_column="as_continued",
            max_completion_length=TOKENS,
            num_samples=self.samples,
            batch_size=128,
            seed=self.setting.seed,
        ).summary
        names = {f"reward/{name}": name for name in ("proxy", "gold")} | {"reward/closed_right": "right"}
        names |= {name: name for name in ("kl", "perplexity", "distinct_2", "length", "ended_share")}
        return {ours: found[name] for name, ours in names.items()}
