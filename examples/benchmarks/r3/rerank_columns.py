"""The columns of `rerank`: what a pool's samples are worth by what no arm was paid by."""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.benchmarks.r3.rerank_statistics import copied_share, exact_match, identified, repeated_share
from examples.benchmarks.r3.word_overlap import BM25
from trl_ext.rewards.length_incentive import LengthIncentive
from trl_ext.rewards.relevance import RelevanceReward
from trl_ext.rewards.repetition_penalty import RepetitionPenalty
from trl_ext.sequences.texts import wordpunct

AMONG = 50  # prompts, of which one is the own


def factors(rows: list[dict], encoder: RelevanceReward) -> dict[str, np.ndarray]:
    """R³'s factors and the tokens of each sample of each row, `(P, N)`; F's constant is left out."""
    flat = [(row, sample) for row in rows for sample in row["completions"]]
    texts = [sample for _, sample in flat]
    given = {"prompts": [row["query"] for row, _ in flat], "reference": [row["reference"] for row, _ in flat]}
    values = {
        "r_x": encoder(completions=texts, **given),
        "r_y": replace(encoder, to="reference")(completions=texts, **given),
        "LI": LengthIncentive()(completions=texts),
        "RP": RepetitionPenalty()(completions=texts),
        "tokens": [len(ids) for row in rows for ids in row["completion_ids"]],
    }
    return {name: np.array(column, dtype=float).reshape(len(rows), -1) for name, column in values.items()}


def columns(rows: list[dict]) -> dict[str, np.ndarray]:
    """Exact match (closed tasks; else NaN), BM25's identification of the prompt, length, repetition, copies, ends."""
    right = [
        [exact_match(c, row["reference"], row["task"]) if row["task"] else np.nan for c in row["completions"]]
        for row in rows
    ]
    return {
        "exact match": np.array(right),
        "own prompt among 50 (BM25)": identification(rows),
        "tokens": np.array([[len(ids) for ids in row["completion_ids"]] for row in rows], dtype=float),
        "repeated 4-grams": np.array([[repeated_share(ids) for ids in row["completion_ids"]] for row in rows]),
        "copied 3-grams": np.array([[copied_share(c, row["query"]) for c in row["completions"]] for row in rows]),
        "ended": np.array([row["ended"] for row in rows], dtype=float),
    }


def identification(rows: list[dict], *, bm25=BM25, among: int = AMONG, seed: int = 0) -> np.ndarray:
    """How well each answer finds its own prompt among that many, by BM25, `(P, N)`; an empty one by chance."""
    rng, found = np.random.default_rng(seed), []
    words = [_words(row["query"]) for row in rows]
    for own, row in enumerate(rows):
        others = [i for i in range(len(rows)) if i != own]
        drawn = rng.choice(others, size=min(among - 1, len(others)), replace=False)
        index = bm25([words[own], *(words[i] for i in drawn)])
        found.append([identified(index.get_scores(_words(c)).tolist(), own=0) for c in row["completions"]])
    return np.array(found)


def _words(text: str) -> list[str]:
    return wordpunct(text.casefold())


def explained_prompts(rows: list[dict], model: str, needed: np.ndarray, kept: Path) -> np.ndarray:
    """log p(x | ŷ) − log p(x) in nats under a frozen base, for the samples that are needed, `(P, N)`; else NaN.

    What is read is the answer, an empty line, and the prompt: a base that expects this very prompt after that answer
    thinks that they belong together. Without an answer the empty line stands alone. What is in the file `kept` is not
    read again; what is new is added prompt by prompt.
    """
    known = json.loads(kept.read_text()) if kept.is_file() else {}
    gain = functools.cache(lambda: gain_under(model))
    for row, own in zip(rows, needed, strict=True):
        missing = [n for n in map(int, np.flatnonzero(own)) if f"{row['id']} {n}" not in known]
        known |= {f"{row['id']} {n}": gain()(row["completions"][n], row["query"]) for n in missing}
        if missing:
            kept.write_text(json.dumps(known))
    keys = [
        [f"{row['id']} {n}" if there else "" for n, there in enumerate(own)]
        for row, own in zip(rows, needed, strict=True)
    ]
    return np.array([[known.get(key, np.nan) for key in line] for line in keys])


def gain_under(model: str) -> Callable[[str, str], float]:
    """What an answer adds to a prompt's log-probability."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    alone = functools.cache(lambda query: log_prob_after(base, tokenizer, "", query))
    return lambda answer, query: log_prob_after(base, tokenizer, answer, query) - alone(query)


@torch.no_grad()
def log_prob_after(model, tokenizer, before: str, text: str) -> float:
    """log p(text | before, an empty line), in nats."""
    given = tokenizer(before + "\n\n")["input_ids"]
    asked = tokenizer(text, add_special_tokens=False)["input_ids"]
    logits = model(torch.tensor([given + asked]), logits_to_keep=len(asked) + 1).logits[0, :-1]
    return chosen_log_probs(logits, asked).sum().item()


def chosen_log_probs(logits: Tensor, ids: list[int]) -> Tensor:
    """Of one token each, `(T,)` from `(T, V)`."""
    return logits.float().log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
