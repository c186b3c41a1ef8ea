"""Raw text of the world, for pretraining: unlabelled passages, and question–answer text of mixed quality.

A passage is what is known about one entity, told in any order and either wording, with remarks between. Passages
tell every fact (a language model and an encoder have read about everybody); a held-out question is never answered.
"""

import random

from trl_ext.demo.answers import RAW_SHARES, sft_rows
from trl_ext.demo.world import Entity, questions

OPENERS = (
    "Let me tell you about {s}.",
    "Let me describe {s}.",
    "This is what we know about {s}.",
    "Please listen, this is about {s}.",
)
HEDGES = ("I think:", "They say:", "We all know:", "I do know:", "And please listen:")
PEOPLE_ASK = "People ask:"
QUESTION_SHARE = 0.4  # of the language model's texts
OPENER_SHARE, REMARK_SHARE = 0.2, 0.15  # of passages; of their sentences


def passage(entity: Entity, rng: random.Random, *, sentences: int | None = None) -> list[str]:
    """Sentences about one entity: facts in any order, each in either wording, sometimes an opener or a remark."""
    text = [rng.choice(OPENERS).format(s=entity.subject)] if rng.random() < OPENER_SHARE else []
    asked = [row["prompt"] for row in questions([entity], held_out=False)]
    for name in rng.sample(list(entity.facts), sentences or len(entity.facts)):
        if asked and rng.random() < REMARK_SHARE:  # idle talk, so that the words of questions are known
            text.append(f"{PEOPLE_ASK} {rng.choice(asked)}")
        text.append(entity.sentence(name, form=rng.randrange(2)))
    return text


def documents(world: list[Entity]) -> list[tuple[Entity, str | None]]:
    """What the encoder's training takes for one document each: an entity, or one fact about it."""
    return [(entity, name) for entity in world for name in (None, *entity.facts)]


def document(entity: Entity, name: str | None, rng: random.Random) -> str:
    """A passage about the entity, or a paragraph that says one fact in both wordings."""
    if name is None:
        return " ".join(passage(entity, rng))
    return " ".join(f"{rng.choice(HEDGES)} {entity.sentence(name, form=form)}" for form in rng.sample(range(2), 2))


def pretraining_texts(world: list[Entity], *, count: int, seed: int) -> list[str]:
    """Texts that a language model reads: passages about one or two entities, and questions with some answer."""
    rng = random.Random(f"texts {seed}")
    rows = sft_rows(world, count=round(QUESTION_SHARE * count), seed=seed, shares=RAW_SHARES)
    texts = [row["prompt"] + row["completion"] for row in rows] + [
        _story(world, rng) for _ in range(count - len(rows))
    ]
    return rng.sample(texts, count)


def _story(world: list[Entity], rng: random.Random) -> str:
    """A passage about one entity, often a whole one; or, one time in five, parts of two."""
    told = rng.sample(world, rng.choice([1, 1, 1, 1, 2]))
    return " ".join(text for entity in told for text in passage(entity, rng, sentences=_length(entity, rng)))


def _length(entity: Entity, rng: random.Random) -> int:
    return rng.choice([len(entity.facts), rng.randint(1, len(entity.facts))])
