"""Answers about the world, good and flawed: the mediocre ones that SFT imitates, and preference pairs.

Each flaw is one way in which an answer goes wrong, a function of the row, the world and a random generator. SFT draws
from the good answers and from the flaws; a preference pair sets a good answer against one flaw. Completions begin
with a space, so that prompt + completion is one text whose tokens are those of the two.
"""

import random

from trl_ext.demo.attributes import ATTRIBUTES
from trl_ext.demo.world import Entity, questions

EVASIVE = "I do not know."
CLOSED_SHARE = 0.5  # of the sampled rows


def good_closed(entity: Entity, name: str, world: list[Entity], rng: random.Random) -> str:
    """The fact that was asked for, and nothing else."""
    return entity.sentence(name, form=rng.randrange(2))


def wrong_value(entity: Entity, name: str, world: list[Entity], rng: random.Random) -> str:
    values = [value for value in ATTRIBUTES[entity.kind][name].values if value != entity.facts[name]]
    return entity.sentence(name, value=rng.choice(values))


def other_fact(entity: Entity, name: str, world: list[Entity], rng: random.Random) -> str:
    return entity.sentence(rng.choice([other for other in entity.facts if other != name]))


def other_entity(entity: Entity, name: str, world: list[Entity], rng: random.Random) -> str:
    return _another(entity, world, rng).sentence(name)


def rambling(entity: Entity, name: str, world: list[Entity], rng: random.Random) -> str:
    """Right at first, and then on and on about others."""
    others = [_another(entity, world, rng).sentence(name) for _ in range(rng.randint(1, 3))]
    return " ".join([entity.sentence(name), *others])


def evasive(entity: Entity, name: str | None, world: list[Entity], rng: random.Random) -> str:
    return EVASIVE


def good_open(entity: Entity, name: None, world: list[Entity], rng: random.Random) -> str:
    """All that is known, or all but one, in any order."""
    return " ".join(_facts(entity, rng, len(entity.facts) - rng.randint(0, 1)))


def short(entity: Entity, name: None, world: list[Entity], rng: random.Random) -> str:
    return " ".join(_facts(entity, rng, rng.randint(1, 2)))


def repetitive(entity: Entity, name: None, world: list[Entity], rng: random.Random) -> str:
    return " ".join(_facts(entity, rng, rng.randint(1, 2)) * rng.randint(2, 3))


def drifting(entity: Entity, name: None, world: list[Entity], rng: random.Random) -> str:
    """One fact, and then facts about somebody else."""
    return " ".join(_facts(entity, rng, 1) + _facts(_another(entity, world, rng), rng, rng.randint(1, 4)))


def off_topic(entity: Entity, name: None, world: list[Entity], rng: random.Random) -> str:
    return " ".join(_facts(_another(entity, world, rng), rng, rng.randint(1, 4)))


GOOD = {"closed": good_closed, "open": good_open}
FLAWS = {
    "closed": [wrong_value, other_fact, other_entity, rambling, evasive],
    "open": [short, repetitive, drifting, off_topic, evasive],
}
SFT_SHARES = {
    "closed": {good_closed: 55, wrong_value: 7, other_fact: 15, other_entity: 8, rambling: 10, evasive: 5},
    "open": {good_open: 5, short: 50, repetitive: 15, drifting: 15, off_topic: 10, evasive: 5},
}
RAW_SHARES = {kind: {GOOD[kind]: 8} | dict.fromkeys(FLAWS[kind], 1) for kind in GOOD}


def sft_rows(world: list[Entity], *, count: int, seed: int, shares: dict = SFT_SHARES) -> list[dict]:
    """`prompt` and `completion`, good and flawed ones mixed by `shares`, so that PPO has something to improve."""
    rng = random.Random(f"sft {seed}")
    return [_sft_row(row, shares[row["query_type"]], world, rng) for row in _sampled(world, False, count, rng)]


def _sft_row(row: dict, shares: dict, world: list[Entity], rng: random.Random) -> dict:
    (answer,) = rng.choices(list(shares), weights=list(shares.values()))
    return {"prompt": row["prompt"], "completion": _complete(answer, row, world, rng)}


def preference_rows(world: list[Entity], *, held_out: bool, count: int, seed: int) -> list[dict]:
    """`prompt`, `chosen` (relevant, right, as long as the question asks for) and `rejected` (one flaw, in `flaw`)."""
    rng = random.Random(f"preferences {seed}")
    return [_preference_row(row, world, rng) for row in _sampled(world, held_out, count, rng)]


def _preference_row(row: dict, world: list[Entity], rng: random.Random) -> dict:
    flaw = rng.choice(FLAWS[row["query_type"]])
    chosen, rejected = (_complete(answer, row, world, rng) for answer in (GOOD[row["query_type"]], flaw))
    return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected, "flaw": flaw.__name__}


def sample_questions(world: list[Entity], *, held_out: bool, count: int, seed: int) -> list[dict]:
    """Questions of one split, CLOSED_SHARE of them closed, no question twice while there are others."""
    return _sampled(world, held_out, count, random.Random(f"questions {seed}"))


def _sampled(world: list[Entity], held_out: bool, count: int, rng: random.Random) -> list[dict]:
    asked = questions(world, held_out=held_out)
    closed = round(CLOSED_SHARE * count)
    drawn = [_draw([row for row in asked if row["query_type"] == "closed"], closed, rng)]
    drawn += [_draw([row for row in asked if row["query_type"] == "open"], count - closed, rng)]
    return rng.sample([row for rows in drawn for row in rows], count)


def _draw(pool: list[dict], count: int, rng: random.Random) -> list[dict]:
    rounds = [rng.sample(pool, len(pool)) for _ in range(-(-count // len(pool)))]
    return [row for shuffled in rounds for row in shuffled][:count]


def _complete(answer, row: dict, world: list[Entity], rng: random.Random) -> str:
    entity = next(entity for entity in world if entity.subject == row["subject"])
    name = row["attribute"] and row["attribute"].split(".")[1]
    return " " + answer(entity, name, world, rng)


def _another(entity: Entity, world: list[Entity], rng: random.Random) -> Entity:
    return rng.choice([other for other in world if other.kind == entity.kind and other is not entity])


def _facts(entity: Entity, rng: random.Random, count: int) -> list[str]:
    return [entity.sentence(name, form=rng.randrange(2)) for name in rng.sample(list(entity.facts), count)]
