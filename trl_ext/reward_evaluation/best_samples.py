"""The best of n answers by a reward, and what n is worth by another one. P prompts, N samples of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_ext.generation.given_generator import check_policy, checked_generator, finished_parts
from trl_ext.generation.protocol import Generator, Part, Policy, Sampling
from trl_ext.generation.tokenising import tokenised
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.reward_evaluation.best_checks import check_complete, check_different, check_proxy, check_rewards, too_few
from trl_ext.reward_evaluation.best_curve import BestOfNCurve
from trl_ext.reward_evaluation.curve_of_scores import best_of_n_curve
from trl_ext.rewards.reward_callables import Reward, reward_functions
from trl_ext.rewards.reward_columns import check_reward_columns, reward_columns
from trl_ext.rewards.weighted_rewards import Scorer
from trl_ext.sequences.prompt_rows import check_prompts, read_dataset
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.template_check import check_template_is_asked
from trl_ext.sequences.texts import Text, text_of
from trl_ext.sequences.windows import check_all_windows
from trl_ext.shared_base.given_policy import Base, Given, given_policy
from trl_ext.trainer_kit.config_checks import checked
from trl_ext.trainer_kit.device import default_device
from trl_ext.trainer_kit.option_rules import AT_LEAST_1
from trl_ext.trainer_kit.seeds import seeded

CALL = "best_of_n(prompts=…)"
TOGETHER = 4096  # samples that are scored together, at most, unless one prompt has more


@dataclass(frozen=True, eq=False)
class BestOfN:
    """N samples of each prompt, and the best of them.

    Args:
        best: One row per prompt, in their order: `row`, `prompt`, `completion`, `completion_ids`, `ended`, `proxy`, `gold`.
            The first of those with the highest proxy.
        samples: All of them, those of a prompt together.
        num_samples: N.
    """

    best: Dataset
    samples: Dataset
    num_samples: int

    @cached_property
    def curve(self) -> BestOfNCurve:
        """Proxy and gold of the best of 1, 2, 4 … N, from these samples."""
        gold = self._table("gold") if "gold" in self.samples.column_names else None
        prompts = [text if isinstance(text, str) else repr(text) for text in self.best["prompt"]]
        texts = [text_of(completion) for completion in self.samples["completion"]]
        rows = [texts[start : start + self.num_samples] for start in range(0, len(texts), self.num_samples)]
        return best_of_n_curve(self._table("proxy"), gold, prompts=prompts, texts=rows)

    def _table(self, name: str) -> np.ndarray:
        """Scores, `(P, N)`."""
        return np.array(self.samples[name][:], dtype=float).reshape(-1, self.num_samples)


def best_of_n(
    policy: Given,
    reward: Reward,
    prompts: Dataset | Sequence[Text],
    *,
    n: int,
    max_completion_length: int,
    gold: Reward | None = None,
    base: Base = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generator: Generator | None = None,
    temperature: float = 1.0,
    chat_template_kwargs: dict[str, Any] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> BestOfN:
    """Sample n answers to each prompt and keep the best by a reward; show what each n up to that is worth.

        found = best_of_n("my-sft-model", "my-reward-model", prompts, n=64, gold="a-larger-one", max_completion_length=256)
        found.best["completion"]         # one answer per prompt
        print(found.curve)               # n, KL, proxy and gold with errors, Gao's fit
        found.curve.save_png("best_of_n.png")

    Where gold turns down while the proxy goes on up, the reward is over-optimised: training on it further than to that KL
    would buy nothing. Samples are `evaluate`'s, which explains the arguments that are not explained here.

    Args:
        policy: A causal LM, one with an adapter (a role of a SharedBase too), or the path or hub id of either.
        reward: By which the best is chosen, the proxy: a function in TRL's protocol, a reward model, its path.
        prompts: A list of texts or messages, or a data set with `prompt` and the columns that the rewards read.
        n: N, samples of each prompt; 8 or more for Gao's fit.
        gold: What the proxy stands for, in any of its forms; it chooses nothing.
        generator: Who samples; None: transformers. It must give n samples of each prompt.
        temperature: Of sampling. The start of KL is what is sampled, so it is to the policy at this temperature.
    """
    n = checked("best_of_n", "n", n, int, AT_LEAST_1)
    max_completion_length = checked("best_of_n", "max_completion_length", max_completion_length, int, AT_LEAST_1)
    batch_size = checked("best_of_n", "batch_size", batch_size, int | None, AT_LEAST_1)
    dataset = read_dataset(_as_dataset(prompts), trainer="best_of_n", name="prompts")
    check_template_is_asked([dataset["prompt"][0]], chat_template_kwargs, call=CALL)
    check_rewards(reward, gold)
    names = ["proxy"] + (["gold"] if gold is not None else [])
    functions = [
        reward_functions(one, max_completion_length=max_completion_length, call=f"best_of_n({name}=…)")[0]
        for name, one in zip(("reward", "gold"), [reward, gold][: len(names)], strict=False)
    ]
    if gold is not None:
        check_different(*functions)
    check_reward_columns(functions, dataset, call=CALL)
    sampling = Sampling(n, max_completion_length, temperature, seed=seed)
    own = TransformersGenerator(batch_size=batch_size)
    generator = own if generator is None else checked_generator(generator, call="best_of_n(generator=…)")
    with seeded(seed):
        given = given_policy(policy, base, tokenizer, device=default_device(), call="best_of_n(policy=…)")
        asked = Policy(*given, chat_template_kwargs or {})
        room = {
            "max_completion_length": max_completion_length,
            "call": CALL,
            "template_kwargs": asked.chat_template_kwargs,
        }
        check_all_windows(dataset, asked.tokenizer, asked.model.config, **room)
        check_policy(generator, asked, sampling, dataset)
        rows = list(_scored(generator, dataset, sampling, asked, dict(zip(names, functions, strict=True))))
    rows.sort(key=lambda row: (row["row"], row["sample"]))
    best = [max(rows[i : i + n], key=lambda row: row["proxy"]) for i in range(0, len(rows), n)]
    return BestOfN(Dataset.from_list(best), Dataset.from_list(rows), n)


def _as_dataset(prompts: object) -> object:
    """A list of prompts as a data set; anything else as it is."""
    if not isinstance(prompts, list | tuple):
        return prompts
    check_prompts(prompts, call=CALL, column="prompts")
    return Dataset.from_dict({"prompt": list(prompts)})


def _scored(
    generator: Generator, dataset: Dataset, sampling: Sampling, asked: Policy, rewards: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Every sample with its proxy and gold, some prompts at a time: of 1024 samples each few are in a pass together."""
    size, count = max(1, TOGETHER // sampling.num_generations), len(dataset)
    texts = dataset["prompt"][:]
    parts = [
        Part(index, tuple(range(start, min(start + size, count))), tuple(texts[start : start + size]))
        for index, start in enumerate(range(0, count, size))
    ]
    scorer, missing = Scorer(list(rewards.values()), [1.0] * len(rewards), sampling.seed), set(range(count))
    for part, samples in finished_parts(generator, parts, sampling, asked):
        samples = tokenised(list(samples), asked)
        check_complete(part, samples, sampling, generator.name)
        missing -= set(part.rows)
        columns = scorer.columns(
            samples, reward_columns(dataset, [sample["row"] for sample in samples]), part=part.index
        )
        scores = zip(*(columns[f"reward/{name}"] for name in scorer.names), strict=True)
        for sample, values in zip(samples, scores, strict=True):
            check_proxy(sample, values[0])
            yield _row(sample) | dict(zip(rewards, values, strict=True))
    if missing:
        raise too_few(min(missing), 0, sampling, generator.name)


def _row(sample: Sample) -> dict[str, Any]:
    return {name: sample[name] for name in ("row", "sample", "prompt", "completion", "completion_ids", "ended")}
