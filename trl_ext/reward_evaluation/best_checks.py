"""What `best_of_n` refuses."""

from collections.abc import Callable

from trl_ext.generation.protocol import Part, Sampling
from trl_ext.rewards.reward_fingerprints import same_reward
from trl_ext.sequences.samples import Sample


def check_rewards(reward: object, gold: object) -> None:
    if reward is None or isinstance(reward, list | tuple):
        raise ValueError(
            f"best_of_n(reward={reward!r:.60}): expected one reward, by which the best is chosen. Give one; of several, e.g. an "
            "EnsembleReward."
        )
    if isinstance(gold, list | tuple):
        raise ValueError(f"best_of_n(gold={gold!r:.60}): expected one reward, or None. Give one.")


def check_different(proxy: Callable, gold: Callable) -> None:
    """Raise a ValueError where both are the same, whatever forms they were given in."""
    if same_reward(proxy, gold):
        raise ValueError(
            "best_of_n(reward=…, gold=…): both are the same, and would show no over-optimisation whatever there is. Give "
            "another reward as gold, or none."
        )


def check_complete(part: Part, samples: list[Sample], sampling: Sampling, generator: str) -> None:
    counts = dict.fromkeys(part.rows, 0)
    for sample in samples:
        counts[sample["row"]] += 1
    few = [row for row, count in counts.items() if count != sampling.num_generations]
    if few:
        raise too_few(few[0], counts[few[0]], sampling, generator)


def too_few(row: int, count: int, sampling: Sampling, generator: str) -> ValueError:
    return ValueError(
        f"best_of_n(n={sampling.num_generations}, generator={generator!r}): the prompt of row {row} has {count} samples. Expected "
        f"{sampling.num_generations} of each prompt, of which the best is chosen. Give a smaller n, or leave the prompt out."
    )


def check_proxy(sample: Sample, score: float | None) -> None:
    if score is None:
        raise ValueError(
            f"best_of_n(reward=…): it does not apply to sample {sample['sample']} of the prompt of row {sample['row']} (None), so "
            "nobody knows whether that is the best. Leave the prompt out, or give a reward that applies to all."
        )
