"""A small world of people, pets and towns, in simple English: who there is, what is true, and what can be asked.

Everything follows from a seed. A fact is one sentence; a closed question asks for one fact, an open one for all that
is known about somebody. Some questions are held out, in all their wordings: no trainer is ever given them.
"""

import json
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"  # written by make_assets.py
POLICY, ENCODER, FACTS = ASSETS / "policy", ASSETS / "encoder", ASSETS / "world.json"

PEOPLE = [
    "Mia",
    "Tom",
    "Ana",
    "Ben",
    "Eva",
    "Leo",
    "Zoe",
    "Max",
    "Ida",
    "Sam",
    "Lea",
    "Jon",
    "Nora",
    "Paul",
    "Rosa",
    "Hugo",
    "Lily",
    "Otto",
    "Vera",
    "Adam",
    "Clara",
    "Felix",
    "Greta",
    "Oscar",
    "Julia",
    "Simon",
    "Maya",
    "David",
    "Alice",
    "Peter",
]
TOWNS = [
    "Oakford",
    "Redhill",
    "Millbrook",
    "Stonebridge",
    "Ashwell",
    "Fernley",
    "Brookside",
    "Westgate",
    "Highmoor",
    "Lakeview",
    "Birchton",
    "Marlow",
]
PETS = ["cat", "dog", "rabbit", "parrot", "horse", "goat", "duck", "hamster", "turtle", "pony"]
COLORS = ["black", "white", "brown", "grey", "red", "blue", "green", "yellow", "purple", "pink"]
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class Attribute:
    """One thing that can be known: its possible values, two ways to say it ({s} subject, {v} value), two to ask it."""

    values: tuple[str, ...]
    sentences: tuple[str, str]
    questions: tuple[str, str]


def attribute(values: list[str] | str, sentences: str, questions: str) -> Attribute:
    values = values.split() if isinstance(values, str) else values
    return Attribute(tuple(values), tuple(sentences.split(" / ")), tuple(questions.split(" / ")))


ATTRIBUTES = {
    "person": {
        "town": attribute(
            TOWNS,
            "{s} lives in {v}. / The home of {s} is in {v}.",
            "Where does {s} live? / In which town does {s} live?",
        ),
        "job": attribute(
            "baker farmer teacher doctor painter singer driver gardener miller sailor tailor builder",
            "{s} works as a {v}. / The job of {s} is that of a {v}.",
            "What is the job of {s}? / What does {s} work as?",
        ),
        "food": attribute(
            "soup bread rice pizza pasta cake salad cheese beans pancakes",
            "{s} likes to eat {v}. / The favorite food of {s} is {v}.",
            "What does {s} like to eat? / What is the favorite food of {s}?",
        ),
        "hat": attribute(
            COLORS,
            "{s} wears a {v} hat. / The hat of {s} is {v}.",
            "What color is the hat of {s}? / Which color does the hat of {s} have?",
        ),
        "hobby": attribute(
            "swimming fishing dancing climbing sailing skating running riding hiking shopping",
            "{s} goes {v} on Sundays. / On Sundays {s} goes {v}.",
            "What does {s} do on Sundays? / How does {s} spend the Sundays?",
        ),
        "pet": attribute(
            PETS, "{s} has a {v}. / The pet of {s} is a {v}.", "What pet does {s} have? / Which animal does {s} have?"
        ),
    },
    "pet": {
        "color": attribute(
            COLORS, "{s} is {v}. / The color of {s} is {v}.", "What color is {s}? / Which color does {s} have?"
        ),
        "food": attribute(
            "carrots fish corn grass seeds apples berries nuts cabbage oats",
            "{s} eats {v}. / The food of {s} is {v}.",
            "What does {s} eat? / What is the food of {s}?",
        ),
        "bed": attribute(
            "kitchen barn garden attic cellar hall basket shed closet bathtub",
            "{s} sleeps in the {v}. / The bed of {s} is in the {v}.",
            "Where does {s} sleep? / In which place does {s} sleep?",
        ),
        "fear": attribute(
            "thunder water spiders mice snow bells drums shadows smoke balloons",
            "{s} is afraid of {v}. / The fear of {s} is {v}.",
            "What is {s} afraid of? / What does {s} fear?",
        ),
        "toy": attribute(
            "ball rope stick feather shoe bone spoon ribbon box bottle",
            "{s} plays with a {v}. / The toy of {s} is a {v}.",
            "What does {s} play with? / What is the toy of {s}?",
        ),
    },
    "town": {
        "place": attribute(
            "lake river forest hill canyon desert swamp beach valley volcano",
            "{s} lies near a {v}. / The place of {s} is near a {v}.",
            "What does {s} lie near? / What is near {s}?",
        ),
        "fame": attribute(
            "clocks roses boats markets bridges songs kites lamps puppets festivals",
            "{s} is famous for {v}. / The fame of {s} comes from {v}.",
            "What is {s} famous for? / Where does the fame of {s} come from?",
        ),
        "weather": attribute(
            "windy rainy sunny foggy stormy cloudy mild dry cold hot",
            "The weather in {s} is {v}. / In {s} the weather is {v}.",
            "How is the weather in {s}? / What is the weather like in {s}?",
        ),
        "tower": attribute(
            COLORS,
            "The tower of {s} is {v}. / The color of the tower of {s} is {v}.",
            "What color is the tower of {s}? / Which color does the tower of {s} have?",
        ),
        "trade": attribute(
            "wool salt wood iron honey glass silk pottery paper leather",
            "People in {s} sell {v}. / The trade of {s} is in {v}.",
            "What do people in {s} sell? / What is the trade of {s}?",
        ),
    },
}
OPEN_QUESTIONS = ("Tell me about {s}.", "What do you know about {s}?", "Please describe {s}.")


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
    for name in PEOPLE:
        person = _entity("person", name, rng)
        entities += [person, _entity("pet", f"{name}'s {person.facts['pet']}", rng)]
    return entities + [_entity("town", name, rng) for name in TOWNS]


def _entity(kind: str, subject: str, rng: random.Random) -> Entity:
    facts = {name: rng.choice(attribute.values) for name, attribute in ATTRIBUTES[kind].items()}
    return Entity(kind, subject, facts, [name for name in (*facts, OPEN) if rng.random() < HELD_OUT_SHARE])


def save_world(world: list[Entity], path: Path) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(asdict(entity)) for entity in world) + "\n]\n")


def load_world(path: Path = FACTS) -> list[Entity]:
    """The world that the policy and the encoder beside it have read about."""
    return [Entity(**entity) for entity in json.loads(path.read_text())]


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
