import asyncio
import math
import random

import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from trl_ext.generation.sample_files import sample_schema
from trl_ext.rewards.weighted_rewards import Scorer
from trl_ext.self_training.grow import with_scores
from trl_ext.sequences.samples import Sample


def samples(*completions, row: int = 0, ended: bool = True) -> list[Sample]:
    return [
        Sample(
            row=row,
            sample=i,
            prompt="?",
            completion=text,
            prompt_ids=[1],
            completion_ids=[2] * len(text),
            ended=ended,
            generator="transformers",
            seed=i,
        )
        for i, text in enumerate(completions)
    ]


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def test_scores_are_weighted_sums_of_the_rewards_that_apply():
    def only_short(completions, **columns):
        return [1.0 if len(text) < 3 else None for text in completions]

    scored = Scorer([length, only_short], [2.0, -1.0]).columns(samples("ab", "abc"), {}, part=0)
    assert scored == {"reward/length": [2.0, 3.0], "reward/only_short": [1.0, None], "score": [3.0, 6.0]}


def test_a_watched_reward_makes_and_drops_no_score():
    def broken(completions, **columns):
        return [math.nan] * len(completions)

    with pytest.warns(UserWarning, match="no finite score by 'broken'"):
        scored = Scorer([length, broken], [1.0, 0.0]).columns(samples("ab"), {}, part=0)
    assert scored["score"] == [2.0]
    assert Scorer([length], [0.0]).columns(samples("ab"), {}, part=0)["score"] == [None]


def test_rewards_get_trls_arguments_and_the_data_sets_columns():
    seen = {}

    def reward(**columns):
        seen.update(columns)
        return [0.0]

    Scorer([reward], [1.0], trainer_state=lambda: "state").columns(samples("ab", ended=False), {"answer": [7]}, part=0)
    assert seen["prompts"] == ["?"] and seen["completions"] == ["ab"] and seen["completion_ids"] == [[2, 2]]
    assert seen["completion_ended"] == [False] and seen["answer"] == [7] and seen["trainer_state"] == "state"
    assert callable(seen["log_metric"]) and callable(seen["log_extra"])


def test_equal_names_are_told_apart():
    assert Scorer([length, length], [1.0, 1.0]).names == ["length_0", "length_1"]


def test_async_rewards_run_together_also_inside_a_running_loop():
    """As in a notebook, where a loop runs already."""
    order = []

    def waits(name, seconds):
        async def reward(completions, **columns):
            order.append(f"{name} begins")
            await asyncio.sleep(seconds)
            order.append(f"{name} ends")
            return [1.0] * len(completions)

        reward.__name__ = name
        return reward

    async def notebook():
        scorer = Scorer([waits("slow", 0.05), length, waits("fast", 0.0)], [1.0, 1.0, 1.0])
        return scorer.columns(samples("ab"), {}, part=0)

    assert asyncio.run(notebook())["score"] == [4.0]
    assert order == ["slow begins", "fast begins", "fast ends", "slow ends"]


def test_random_numbers_of_a_reward_follow_from_the_part_and_disturb_nobody():
    def noisy(completions, **columns):
        return [random.random() + torch.rand(1).item() for _ in completions]

    random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), torch.rand(1).item())
    random.seed(1)
    torch.manual_seed(1)
    scorer = Scorer([noisy], [1.0], seed=3)
    first, again, other = (scorer.columns(samples("a"), {}, part=part)["score"] for part in (0, 0, 1))
    assert first == again != other
    assert (random.random(), torch.rand(1).item()) == expected


def test_what_a_prompt_has_already_is_marked():
    rows = samples("a", "b", "a") + samples("a", row=1)
    table = pa.Table.from_pylist(rows, schema=sample_schema(pa.string(), "fingerprint"))
    scored = with_scores(table, Scorer([length], [1.0]), Dataset.from_dict({"answer": ["0", "1"]}), 0)
    assert scored["duplicate"].to_pylist() == [False, False, True, False]  # another prompt may say the same


def test_weights_must_match():
    with pytest.raises(ValueError, match=r"reward_weights=\[1.0\]: expected one per reward function \(2\), got 1"):
        Scorer([length, length], [1.0])
