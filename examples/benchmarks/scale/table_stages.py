"""RAFT and ReST over completions that stand in a table, for `equal_to_one`."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_ext import RAFTTrainer, ReSTTrainer
from trl_ext.self_training import SelfTrainingTrainer
from trl_ext.sequences.samples import Sample

METHODS = {"RAFT": RAFTTrainer, "ReST": ReSTTrainer}
STAGES = {
    "RAFT": {"num_stages": 2, "beta": 0.1},
    "ReST": {"num_stages": 1, "thresholds": [0.2, 0.5], "score_map": "grow", "keep_best": True, "mix_dataset": False},
}
COMPLETIONS = 4  # of each prompt
UNTOLD = {"prompt_ids": None, "completion_ids": None, "ended": True, "seed": -1}


class Table:
    """A generator with the same completions for each prompt, whatever the policy."""

    name, samples_policy = "table", False

    def settings(self) -> dict[str, Any]:
        return {}

    def generate(self, parts, sampling, policy) -> Iterator[tuple]:
        for part in parts:
            prompts = zip(part.rows, part.prompts, strict=True)
            rows = [(row, prompt, k) for row, prompt in prompts for k in range(COMPLETIONS)]
            told = {"generator": self.name} | UNTOLD
            yield part, [Sample(row=r, sample=k, prompt=p, completion=words(r + k), **told) for r, p, k in rows]


def words(number: int) -> str:
    """A space, and from one to five words."""
    return "".join(f" w{(7 * number + 3 * place) % 500 + 4}" for place in range(number % 5 + 1))


def even_words(completions, **columns) -> list[float]:
    """Score: how many of a completion's words have an even number."""
    return [float(sum(word[-1] in "02468" for word in text.split())) for text in completions]


def self_trainer(
    method: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    steps: int,
    **options: Any,
) -> SelfTrainingTrainer:
    """A trainer whose Improves are `steps` long; held out are half of the prompts, with answers of one length.

    Args:
        options: Of its config.
    """
    trainer = METHODS[method]
    stages = STAGES[method] | {"num_generations": COMPLETIONS, "max_completion_length": 5, "prompts_per_part": 3}
    watched = {"eval_strategy": "steps", "eval_steps": 1, "learning_rate": 1e-3, "improve_steps": steps}
    half = prompts[: len(prompts) // 2]
    return trainer(
        policy,
        even_words,
        trainer.config_class(**stages, **watched, **options),
        Dataset.from_dict({"prompt": prompts}),
        Dataset.from_dict({"prompt": half, "completion": [words(5 * i + 2) for i in range(len(half))]}),
        tokenizer,
        generator=Table(),
    )
