"""A small world of people, pets and towns, in simple English: who there is, what is true, and what can be asked.

Everything follows from a seed. A fact is one sentence; a closed question asks for one fact, an open one for all that
is known about somebody. Some questions are held out, in all their wordings: no trainer is ever given them.
"""

import json
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from trl_ext.demo.attributes import ATTRIBUTES, OPEN_QUESTIONS, PEOPLE, TOWNS

ASSETS = Path(__file__).parent / "assets"  # written by make_assets.py

HELD_OUT_SHARE = 0.2
OPEN = "open"  # stands for the open question where attributes are named


@dataclass(frozen=True)
class Entity:
    """Somebody or something: its kind, its name, a value per attribute, and what nobody is asked about in training.

    `held_out` names attributes, and OPEN for the question about all of them.
    """

    kind: str
    subject: str
    facts: dict[str, str]
    held_out: list[str]

    def sentence(self, name: str, form: int = 0, value: str | None = None) -> str:
        """The fact `name` as a sentence; with `value`, what the sentence would be if that were true."""
        return ATTRIBUTES[self.kind][name].sentences[form].format(s=self.subject, v=value or self.facts[name])

    def description(self) -> str:
        return " ".join(self.sentence(name) for name in self.facts)


def make_world(seed: int = 0) -> list[Entity]:
    """All people, their pets, and the towns.

    >>> mia, pet = make_world(seed=0)[:2]
    >>> mia.subject, pet.subject == f"Mia's {mia.facts['pet']}"
    ('Mia', True)
    """
    rng = random.Random(seed)
    entities = []
    for name in PEOPLE.split():
        person = _entity("person", name, rng)
        entities += [person, _entity("pet", f"{name}'s {person.facts['pet']}", rng)]
    return entities + [_entity("town", name, rng) for name in TOWNS.split()]


def _entity(kind: str, subject: str, rng: random.Random) -> Entity:
    facts = {name: rng.choice(attribute.values) for name, attribute in ATTRIBUTES[kind].items()}
    return Entity(kind, subject, facts, [name for name in (*facts, OPEN) if rng.random() < HELD_OUT_SHARE])


def save_world(world: list[Entity], path: Path) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(asdict(entity)) for entity in world) + "\n]\n", encoding="utf-8")


def load_world() -> list[Entity]:
    """The world that the policy and the encoder beside it have read about."""
    return [Entity(**entity) for entity in json.loads((ASSETS / "world.json").read_text(encoding="utf-8"))]


def questions(world: list[Entity], *, held_out: bool) -> list[dict]:
    """The questions of one split, with the columns that R³ reads and those that grade a closed answer.

    `prompt`, `reference` (the fact, or the whole description), `query_type` ('closed' or 'open'), `subject`,
    `attribute` ('pet.color') and `answer` ('black'); the last two are None where the question is open.
    """
    return [row for entity in world for row in _questions(entity, held_out)]


def _questions(entity: Entity, held_out: bool) -> list[dict]:
    names = [name for name in (*entity.facts, OPEN) if (name in entity.held_out) == held_out]
    return [row for name in names for row in (_open(entity) if name == OPEN else _closed(entity, name))]


def _closed(entity: Entity, name: str) -> list[dict]:
    return [
        {
            "prompt": question.format(s=entity.subject),
            "reference": entity.sentence(name),
            "query_type": "closed",
            "subject": entity.subject,
            "attribute": f"{entity.kind}.{name}",
            "answer": entity.facts[name],
        }
        for question in ATTRIBUTES[entity.kind][name].questions
    ]


def _open(entity: Entity) -> list[dict]:
    row = {"reference": entity.description(), "query_type": "open", "subject": entity.subject}
    return [
        {"prompt": question.format(s=entity.subject), **row, "attribute": None, "answer": None}
        for question in OPEN_QUESTIONS
    ]


def answered_right(completion: str, *, attribute: str, answer: str) -> bool:
    """Whether a closed answer commits itself to the right value: it is named, and no other that could stand there.

    >>> answered_right("Mia's cat is black.", attribute="pet.color", answer="black")
    True
    >>> answered_right("Mia's cat is black. Tom's dog is white.", attribute="pet.color", answer="black")
    False
    """
    kind, name = attribute.split(".")
    said = set(re.findall(r"\w+", completion))
    return said & set(ATTRIBUTES[kind][name].values) == {answer}
