"""Proxies, their ensemble and a gold reward model on the demo's world, which share no person: made once per seed."""

import dataclasses
import random
from pathlib import Path
from typing import NamedTuple

from trl_ext.demo import stages
from trl_ext.demo.answers import preference_rows
from trl_ext.demo.world import Entity, load_world

MEMBERS = 4
PAIRS = {"gold": 1600, "member": 96}


class Made(NamedTuple):
    """Where the models are: the policy after SFT, the gold, the proxies, and one of as many pairs as all of them read."""

    policy: Path
    gold: Path
    members: list[Path]
    control: Path


def halves(world: list[Entity]) -> tuple[list[Entity], list[Entity]]:
    """The people that the gold learns about, and those that proxies learn about and that are asked about."""
    return tuple([entity for i, entity in enumerate(world) if (i // 2) % 2 == side] for side in (0, 1))


def made(folder: Path, *, seed: int, flipped: float) -> Made:
    """Train what is not there yet.

    Args:
        folder: One per seed and share of flipped labels.
        seed: Of data, order, heads.
        flipped: Share of the proxies' pairs whose sides are exchanged.
    """
    gold_half, proxy_half = halves(load_world())
    policy, gold, scale = folder / "sft", folder / "gold", dataclasses.replace(stages.FULL, pairs=PAIRS["gold"])
    if not _is_made(policy):
        stages.supervised(load_world(), policy, scale, seed=seed)
    if not _is_made(gold):
        stages.reward_model(gold_half, policy, gold, scale, imitation_coef=0.0, seed=seed)
    pool = preference_rows(proxy_half, held_out=False, count=PAIRS["member"] * MEMBERS, seed=seed + 1)
    pool = with_flips(pool, flipped, seed=seed)
    members = [folder / f"member-{i}" for i in range(MEMBERS)]
    for number, member in enumerate(members):
        if not _is_made(member):
            drawn = random.Random(f"{seed} {number}").choices(pool, k=PAIRS["member"])
            stages.reward_model_of(drawn, policy, member, imitation_coef=0.0, seed=100 * seed + number)
    control = folder / "control"
    if not _is_made(control):
        stages.reward_model_of(pool, policy, control, imitation_coef=0.0, seed=100 * seed + MEMBERS)
    return Made(policy, gold, members, control)


def with_flips(pairs: list[dict], share: float, *, seed: int) -> list[dict]:
    """The pairs, of which a share, drawn by the seed, has its sides exchanged.

    >>> with_flips([{"chosen": "a", "rejected": "b"}], 1.0, seed=0)
    [{'chosen': 'b', 'rejected': 'a'}]
    """
    drawn = set(random.Random(f"flips {seed}").sample(range(len(pairs)), round(share * len(pairs))))
    return [
        pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} if i in drawn else pair
        for i, pair in enumerate(pairs)
    ]


def _is_made(folder: Path) -> bool:
    return (folder / "model.safetensors").exists()
