"""The two tasks on which PPO is measured: the demo's small world, and film-review sentiment.

A task is what all arms of one seed share. It is made once and kept on disk: a policy after SFT, a reward model that
the arms are paid by, and a judge that none of them is, from data that neither the arms nor the reward model have read.
"""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from examples.benchmarks.common.demo_setting import prepare
from examples.benchmarks.self_training import sentiment
from trl_ext import LearnedReward
from trl_ext.demo import stages
from trl_ext.demo.answers import sample_questions
from trl_ext.sequences.continuations import continuation_texts

PROMPTS = 12_800  # of the demo's world, to learn from
HELD_OUT = {"demo": 256, "sentiment": 192}


@dataclass
class Task:
    """What all arms of one seed share.

    Args:
        start: Path of the policy that all arms begin with, and KL is measured to.
        reward, judge: What the arms are paid by, and what they are not.
        prompts: Rows to learn from, column `prompt`.
        held_out: Rows that are only answered; those with an `answer` and an `attribute` are closed questions.
        tokens: Longest completion.
        seed: The seed.
    """

    start: Path
    reward: LearnedReward
    judge: LearnedReward
    prompts: Dataset
    held_out: list[dict]
    tokens: int
    seed: int

    @property
    def reward_path(self) -> str:
        return self.reward.module.config._name_or_path

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.start)


class ContinuedReward:
    """A reward that reads each completion as it continues its prompt, whoever asks.

    `PPOTrainer` hands over completions so; TRL's trainers decode them by themselves, where a tokenizer in Llama-2's
    manner loses the first space, and the score would be that of another text.

    Args:
        reward: What scores.
        tokenizer: The policy's.
    """

    def __init__(self, reward: LearnedReward, tokenizer: PreTrainedTokenizerBase):
        self.reward, self.tokenizer, self.__name__ = reward, tokenizer, "reward"

    def __call__(self, *, prompts: list[str], completion_ids: list[list[int]], **columns) -> list[float]:
        completions = continuation_texts(completion_ids, self.tokenizer)
        ended = [bool(ids) and ids[-1] == self.tokenizer.eos_token_id for ids in completion_ids]
        return self.reward(prompts=prompts, completions=completions, completion_ended=ended)


def demo_task(folder: Path, seed: int) -> Task:
    """Questions about the demo's world; reward model and judge learn from pairs about one half of it each."""
    setting = prepare(folder, seed)
    prompts, held_out = (
        sample_questions(setting.world, held_out=unseen, count=count, seed=seed)
        for unseen, count in ((False, PROMPTS), (True, HELD_OUT["demo"]))
    )
    tokens = stages.COMPLETION_LENGTH
    return Task(setting.policy, setting.reward, setting.judge, Dataset.from_list(prompts), held_out, tokens, seed)


def sentiment_task(folder: Path, seed: int, *, model: str, pairs: Path) -> Task:
    """Beginnings of sentences from film reviews; a completion is paid for praise. See sentiment.py."""
    options = sentiment.parse(["--model", model, "--pairs", str(pairs), "--output-dir", str(folder)])
    parts = sentiment.divided(sentiment.load_pairs(pairs, AutoTokenizer.from_pretrained(model)), seed)
    for name, part, its_seed in (("reward", "arms", seed), ("judge", "judge", seed + 1)):
        if not (folder / name / "model.safetensors").exists():
            sentiment.learned_reward(options, parts[part], folder / name, its_seed)
    if not (folder / "start" / "model.safetensors").exists():
        rows = sentiment.completions(parts["arms"], "chosen", "rejected")
        length = {"num_train_epochs": options.start_epochs, "learning_rate": options.start_learning_rate}
        sentiment.fine_tuned(model, rows, folder / "start", seed, **length)
    reward, judge = (LearnedReward(folder / name, batch_size=64) for name in ("reward", "judge"))
    prompts = list(dict.fromkeys(pair["prompt"] for pair in parts["arms"]))
    held_out = [{"prompt": pair["prompt"]} for pair in parts["held-out"]][: HELD_OUT["sentiment"]]
    return Task(
        folder / "start", reward, judge, Dataset.from_dict({"prompt": prompts}), held_out, options.tokens, seed
    )
