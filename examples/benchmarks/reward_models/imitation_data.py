"""Pairs for `imitation`: which of them learn and which are asked about, chosen by hash and cut to how many tokens."""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from trl_ext.demo.answers import preference_rows
from trl_ext.demo.world import load_world
from trl_ext.sequences.preference_rows import PROMPT_TOKENS
from trl_ext.trainer_kit.row_files import json_rows

LEARNED = {"pref_hh": "pref_hh/helpful.jsonl", "pref_qafeedback": "pref_qafeedback/pairs.jsonl"}
ASKED = "pref_judge/pairs.jsonl"
TURN = "Human: {prompt}\n\nAssistant:"  # as pref_hh has its turns
POOLED = 100  # rows, below which a source is one of "others"
HELD_OUT = 0.2  # share of the prompts of what is learned from


class World(NamedTuple):
    """Pools of pairs to learn from, a like number from each, and sets that are asked about, the primary endpoint's first."""

    pools: list[list[dict]]
    asked: dict[str, list[dict]]


def real_pairs(folder: Path, *, judged: int, held_out: int) -> World:
    """pref_hh and pref_qafeedback to learn from; pref_judge, and their held-out prompts, to be asked about."""
    read = {name: [in_turns(row) for row in json_rows(folder / path)] for name, path in LEARNED.items()}
    asked = {"pref_judge": balanced(with_strata([in_turns(row) for row in json_rows(folder / ASKED)]), judged)}
    for name, rows in read.items():
        asked[name] = by_hash(row for row in rows if share_of(row["prompt"]) < HELD_OUT)[:held_out]
    pools = [by_hash(row for row in rows if share_of(row["prompt"]) >= HELD_OUT) for rows in read.values()]
    return World(pools, asked)


def demo_pairs(*, judged: int) -> World:
    """The demo's, of which the better is known; asked about are questions that no pair to learn from has."""
    learned, asked = (
        [row | {"source": row["flaw"], "stratum": "all"} for row in preference_rows(load_world(), **how)]
        for how in (
            {"held_out": False, "count": 3200, "seed": 0},
            {"held_out": True, "count": 4 * judged, "seed": 1},
        )
    )
    return World([learned], {"held-out questions": balanced(asked, judged)})


def in_turns(row: dict) -> dict:
    """Prompt, completions and source of a row, in the form of a conversation."""
    if row["prompt"].rstrip().endswith("Assistant:"):
        prompt = row["prompt"].strip()
    else:
        prompt = TURN.format(prompt=row["prompt"].strip())
    answers = {side: f" {row[side].strip()}" for side in ("chosen", "rejected")}
    return {"prompt": prompt, **answers, "source": row["source"]}


def with_strata(rows: list[dict]) -> list[dict]:
    """The rows with their source as stratum, small sources together as others."""
    sizes = Counter(row["source"] for row in rows)
    names = {source: source if size >= POOLED else "others" for source, size in sizes.items()}
    return [row | {"source": names[row["source"]], "stratum": names[row["source"]]} for row in rows]


def balanced(rows: list[dict], count: int) -> list[dict]:
    """So many rows, half of which chose the shorter completion, also within each stratum; equal lengths are left out.

    A stratum has its share of them by how many it could give; fewer than `count` where all together cannot give as many.

    >>> rows = [{"prompt": str(i), "chosen": "x" * (i % 3), "rejected": "x", "stratum": "a"} for i in range(9)]
    >>> sorted(len(row["chosen"]) for row in balanced(rows, 4))
    [0, 0, 2, 2]
    """
    strata = defaultdict(lambda: ([], []))
    for row in by_hash(rows):
        if longer_by(row):
            strata[row["stratum"]][longer_by(row) > 0].append(row)
    given = {name: min(map(len, halves)) for name, halves in strata.items()}
    wanted = shares(given, min(count // 2, sum(given.values())))
    return [row for name in sorted(strata) for half in strata[name] for row in half[: wanted[name]]]


def shares(sizes: dict[str, int], count: int) -> dict[str, int]:
    """`count`, divided in proportion to sizes, whose sum is at least that; what is over goes to the largest fractions.

    >>> shares({"a": 10, "b": 5}, 4)
    {'a': 3, 'b': 1}
    """
    exact = {name: count * size / max(1, sum(sizes.values())) for name, size in sizes.items()}
    found = {name: int(share) for name, share in exact.items()}
    over = sorted(exact, key=lambda name: (found[name] - exact[name], name))[: count - sum(found.values())]
    return {name: share + (name in over) for name, share in found.items()}


def longer_by(row: dict) -> int:
    """Characters of the chosen completion less those of the rejected one."""
    return len(row["chosen"].strip()) - len(row["rejected"].strip())


def by_hash(rows: Iterable[dict]) -> list[dict]:
    """In an order that is random, and everywhere the same."""
    return sorted(rows, key=lambda row: digest("\n".join((row["prompt"], row["chosen"], row["rejected"]))))


def share_of(text: str) -> float:
    """Where a text stands in [0, 1), by its hash.

    >>> share_of("a") == share_of("a"), 0 <= share_of("b") < 1
    (True, True)
    """
    return int(digest(text)[:8], 16) / 16**8


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def drawn(world: World, count: int, seed: int) -> list[dict]:
    """So many pairs of a seed, as many from each pool; fewer are the first of more."""
    orders = [random.Random(f"{seed} {i}").sample(pool, len(pool)) for i, pool in enumerate(world.pools)]
    found = [row for rows in zip(*orders, strict=False) for row in rows]
    if len(found) < count:
        raise ValueError(f"imitation: --pairs {count} of pools that give {len(found)}. Ask for fewer.")
    return found[:count]


def cut(rows: Iterable[dict], tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[dict]:
    """Ids of both sequences of each row, at most so many: of the completions the beginning, of the prompt the end.

    A prompt has a third of the tokens, or what the longer completion leaves. Whole completions have their end token.
    """
    return [cut_row(row, tokenizer, tokens) for row in rows]


def cut_row(row: dict, tokenizer: PreTrainedTokenizerBase, tokens: int) -> dict:
    prompt = tokenizer(row["prompt"])["input_ids"]
    ends = {
        side: [*tokenizer(row[side], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for side in ("chosen", "rejected")
    }
    room = max(tokens // 3, tokens - max(map(len, ends.values())))
    if len(prompt) > room:
        begin = prompt[:1] if prompt[0] == tokenizer.bos_token_id else []
        prompt = begin + prompt[len(prompt) - room + len(begin) :]
    ids = {f"{side}_ids": (prompt + end)[:tokens] for side, end in ends.items()}
    return ids | {PROMPT_TOKENS: len(prompt)}
