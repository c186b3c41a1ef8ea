"""How good a policy's answers to held-out questions are."""

from pathlib import Path
from statistics import mean

import numpy as np
from datasets import Dataset

from trl_ext.demo.stages import COMPLETION_LENGTH, closed_right, learned, r3
from trl_ext.evaluation import Evaluation, evaluate, score
from trl_ext.sequences.texts import wordpunct


def pair_accuracy(judge: Path, pairs: list[dict]) -> float:
    """Share of held-out pairs in which the reward model scores the chosen answer higher."""
    reward, prompts = learned(judge), [pair["prompt"] for pair in pairs]
    chosen, rejected = (
        score(reward, prompts, [pair[side] for pair in pairs])[reward.__name__] for side in ("chosen", "rejected")
    )
    return mean(good > bad for good, bad in zip(chosen, rejected, strict=True))


def look(policy: Path, start: Path, questions: list[dict], judge: Path, *, seed: int) -> Evaluation:
    """One answer to each question at temperature 1, scored, and the policy's KL to where PPO started."""
    return evaluate(
        policy,
        Dataset.from_list(questions),
        [r3(), learned(judge), closed_right],
        reference=start,
        references_column=None,
        max_completion_length=COMPLETION_LENGTH,
        batch_size=64,
        seed=seed,
    )


def of_each(looked: Evaluation) -> dict[str, np.ndarray]:
    """R³ and right closed answers of each question; NaN where it is an open one."""
    names = {"R³": "reward/R3Reward", "closed questions answered right": "reward/closed_right"}
    return {name: np.array(looked.samples[column][:], dtype=float) for name, column in names.items()}


def measures(looked: Evaluation, questions: list[dict], judge: Path) -> dict[str, float]:
    """R³ and each factor, the reward model's score, right closed answers, length, KL and distinct-2."""
    found, texts = looked.summary, looked.samples["completion"]
    return {
        "R³": found["reward/R3Reward"],
        "relevance to the question (open)": found["r3/relevance_prompt"],
        "relevance to the reference (closed)": found["r3/relevance_reference"],
        "length incentive (open)": found["r3/length_incentive"],
        "repetition penalty": found["r3/repetition_penalty"],
        "reward model's score": found[f"reward/{judge.name}"],
        "closed questions answered right": found["reward/closed_right"],
        "words per open answer": mean(_lengths(texts, questions, "open")),
        "words per closed answer": mean(_lengths(texts, questions, "closed")),
        "KL to SFT per answer (nats)": found["kl"],
        "distinct-2": found["distinct_2"],
    }


def _lengths(texts: list[str], questions: list[dict], query_type: str) -> list[int]:
    rows = zip(texts, questions, strict=True)
    return [len(wordpunct(text)) for text, row in rows if row["query_type"] == query_type]
