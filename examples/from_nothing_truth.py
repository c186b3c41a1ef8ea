"""What the labels and the reward models of `from_nothing.py` keep of the truth, which only the demo's world has."""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import NamedTuple

from from_nothing_endpoint import quality

from trl_ext import LearnedReward
from trl_ext.demo import Entity, questions

UNDECIDED = 0.05  # |P − ½| below which a pair teaches nothing
SIDES = ("better", "worse")
Quality = Callable[[str, str], float]


class Known(NamedTuple):
    """Two answers of which the first is better in truth; `is_fact`: the one is right and the other wrong, else alike."""

    prompt: str
    better: str
    worse: str
    is_fact: bool


def qualities(world: list[Entity]) -> Quality:
    """From a question of the world, held out or not, and an answer to its quality; 0 for questions of which the world knows nothing."""
    rows = {row["prompt"]: row for held_out in (False, True) for row in questions(world, held_out=held_out)}
    entities = {entity.subject: entity for entity in world}

    def of(prompt: str, answer: str) -> float:
        row = rows.get(prompt)
        return 0.0 if row is None else quality(row, answer, entities[row["subject"]])

    return of


def known_pairs(pairs: Sequence[dict], of: Quality, facts: set[str]) -> list[Known]:
    """Those of `completion_1` and `completion_2` that differ in quality; `facts`: questions that ask for one fact."""
    found = []
    for pair in pairs:
        one, other = ((of(pair["prompt"], text), text) for text in (pair["completion_1"], pair["completion_2"]))
        if one[0] != other[0]:
            (high, better), (low, worse) = sorted((one, other), reverse=True)
            is_fact = pair["prompt"] in facts and high - low == 2.0
            found.append(Known(pair["prompt"], better, worse, is_fact))
    return found


def labels_right(labels: Sequence[dict], of: Quality) -> list[bool]:
    """Of each label whose two answers differ in quality: whether it chose the better one."""
    gains = [of(row["prompt"], row["chosen"]) - of(row["prompt"], row["rejected"]) for row in labels]
    return [gain > 0 for gain in gains if gain]


def reward_right(reward: LearnedReward, known: Sequence[Known]) -> list[bool]:
    """Of each pair: whether the better answer is paid more."""
    prompts = [pair.prompt for pair in known]
    better, worse = (reward(prompts=prompts, completions=[getattr(pair, side) for pair in known]) for side in SIDES)
    return [one > other for one, other in zip(better, worse, strict=True)]


def decided(labels: Sequence[dict]) -> list[dict]:
    """Those that say which answer is better."""
    found = [row for row in labels if abs(row["chosen_probability"] - 0.5) >= UNDECIDED]
    if not found:
        raise ValueError(
            f"from_nothing.py: of {len(labels)} labels none says which answer is better (all within {UNDECIDED} of ½), and "
            "nothing can be learned from them. Give an --endpoint-model that tells answers apart, in another --output-dir."
        )
    return found


def share(right: Sequence[bool]) -> str:
    """Of those that are right, ± standard error."""
    if not right:
        return "none to tell by"
    mean = sum(right) / len(right)
    return f"{mean:.3f} ± {sqrt(mean * (1 - mean) / len(right)):.3f} of {len(right)}"
