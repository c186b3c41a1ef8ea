"""Writes the seeds and the recorded answers of `from_nothing.py`: what a model might say about the demo's world, played by this script.

    python examples/from_nothing_record.py

No model has written them. Each list has some of the instructions below, as they come, old ones among them, and some have an
item that the filters leave out; instances are questions of the world, none of them held out, four in five of
them answered right.
"""

import json
import random
import tempfile
from pathlib import Path

from from_nothing_endpoint import RecordedEndpoint, prompt_key

from trl_ext import EndpointGenerator, SelfInstruct, SelfInstructConfig, TaskWording
from trl_ext.demo import ATTRIBUTES, EVASIVE, OPEN, OPEN_QUESTIONS, Entity, load_world, other_fact, short, wrong_value
from trl_ext.trainer_kit import stable_seed

FOLDER = Path(__file__).parent
SEEDS, RECORDED = FOLDER / "from_nothing_seeds.jsonl", FOLDER / "from_nothing_recorded.jsonl"
INSTANCES = 24  # of an instruction, where the world has so many
CONFIG = SelfInstructConfig(num_instructions=30, max_instances=INSTANCES, batch_size=2, num_examples=4)
WORDING = TaskWording()
SEED_TASKS = {  # instruction: what is asked about
    "Answer the question about a home with one sentence.": "person.town",
    "Tell what somebody does for a living.": "person.job",
    "Which color is it? Give the color alone.": "person.hat",
    "Say which dish a person enjoys most.": "person.food",
    "Sort the animal by its color: name that color only.": "pet.color",
    "Where can the pet be found at night?": "pet.bed",
    "Give the thing a pet is scared of.": "pet.fear",
    "Report how the sky looks over the town.": "town.weather",
    "Tell a visitor what the place is known for.": "town.fame",
    "Introduce somebody or something in a few sentences.": OPEN,
}
MADE_TASKS = {
    "State the town where the named person has a house.": "person.town",
    "Help the postman: whose letter goes to which town?": "person.town",
    "Fill in the occupation field of this register.": "person.job",
    "Explain how this citizen earns money every week.": "person.job",
    "Plan a birthday meal by naming a favorite dish.": "person.food",
    "Find out what the cook should prepare for this guest.": "person.food",
    "Label the hat by color, using a single word.": "person.hat",
    "Describe what this neighbor does when Sunday comes.": "person.hobby",
    "Recommend a Sunday companion by stating someone's pastime.": "person.hobby",
    "Identify the species of the animal living with a person.": "person.pet",
    "Complete the census: what creature shares that household?": "person.pet",
    "Classify a pet's fur into one color word.": "pet.color",
    "Paint the animal from memory: what shade do you need?": "pet.color",
    "List the food to buy for an animal on holiday.": "pet.food",
    "Advise a sitter about feeding somebody's pet.": "pet.food",
    "Locate the sleeping spot belonging to an animal.": "pet.bed",
    "Warn the family about whatever frightens their pet.": "pet.fear",
    "Choose a present that the animal can play with.": "pet.toy",
    "Mention the toy which keeps this creature busy.": "pet.toy",
    "Name the landscape lying next to a town.": "town.place",
    "Write one travel guide sentence on surroundings.": "town.place",
    "Advertise the settlement with its best known attraction.": "town.fame",
    "Forecast tomorrow's conditions from what is usual there.": "town.weather",
    "Assign the tower to a color category.": "town.tower",
    "Note the merchandise sold by merchants in that market.": "town.trade",
    "Summarize the local economy in a short statement.": "town.trade",
    "Share everything you remember regarding this name.": OPEN,
    "Compose a brief portrait of whoever is asked about.": OPEN,
    "Give an overview that a newcomer would find useful.": OPEN,
    "Talk freely on the subject mentioned below.": OPEN,
    "Prepare notes for a speech about the one in question.": OPEN,
    "Collect facts that belong in an encyclopedia entry.": OPEN,
    "Make small talk by recalling details of an acquaintance.": OPEN,
    "Provide background information before the interview starts.": OPEN,
}
UNFIT = (
    "Draw a map of the town and its tower.",
    "Sing a song.",
    "Write a program that counts hats.",
    "- tell me more about that",
)
LABELLED = {"person.hat", "pet.color", "town.tower"}  # with words such as color, sort, label: a label is the output


class Writer:
    """Plays the model, and keeps what it said."""

    def __init__(self, world: list[Entity]):
        self.world, self.said = world, {}

    def __call__(self, prompt: str) -> str:
        self.said[prompt_key(prompt)] = text = self._text(prompt, random.Random(stable_seed(prompt)))
        return text

    def _text(self, prompt: str, rng: random.Random) -> str:
        if prompt.startswith(WORDING.series):
            items = rng.sample(list(MADE_TASKS), 4) + ([rng.choice(UNFIT)] if rng.random() < 1 / 3 else [])
            return " " + "\n".join(f"{9 + i}. {item}" for i, item in enumerate(items)).removeprefix("9. ")
        instruction = prompt.rpartition(f"{WORDING.task}: ")[2].splitlines()[0]
        if prompt.startswith(WORDING.question):
            return f" {WORDING.yes if is_labelled(instruction) else WORDING.no}"
        rows = instances(self.world, instruction, MADE_TASKS[instruction], INSTANCES, rng)
        if is_labelled(instruction):
            return "\n".join(f"{WORDING.label}: {row['output']}\n{WORDING.input}: {row['input']}" for row in rows)
        return "\n".join(
            f"{WORDING.example} {i}\n{WORDING.input}: {row['input']}\n{WORDING.output}: {row['output']}"
            for i, row in enumerate(rows, start=1)
        )


def is_labelled(instruction: str) -> bool:
    """Whether a word is the whole output."""
    kind = SEED_TASKS.get(instruction) or MADE_TASKS[instruction]
    return kind in LABELLED and not instruction.startswith("Paint")


def instances(world: list[Entity], instruction: str, kind: str, number: int, rng: random.Random) -> list[dict]:
    """Questions of a kind, no two about one of the world, with answers."""
    species, _, name = (None, None, OPEN) if kind == OPEN else kind.partition(".")
    asked = [entity for entity in world if species in (None, entity.kind) and (name or OPEN) not in entity.held_out]
    return [_instance(entity, name, instruction, world, rng) for entity in rng.sample(asked, min(number, len(asked)))]


def _instance(entity: Entity, name: str, instruction: str, world: list[Entity], rng: random.Random) -> dict:
    if name == OPEN:
        question, answer = rng.choice(OPEN_QUESTIONS), short(entity, None, world, rng)
    else:
        question = rng.choice(ATTRIBUTES[entity.kind][name].questions)
        answer = entity.sentence(name, rng.randrange(2)) if rng.random() < 0.8 else _flawed(entity, name, world, rng)
    if is_labelled(instruction):
        answer = entity.facts[name]
    return {"input": question.format(s=entity.subject), "output": answer}


def _flawed(entity: Entity, name: str, world: list[Entity], rng: random.Random) -> str:
    flaw = rng.choice((wrong_value, other_fact, lambda *_: EVASIVE))
    return flaw(entity, name, world, rng)


def write_seeds(world: list[Entity]) -> None:
    rng = random.Random("seeds")
    rows = [
        {
            "instruction": instruction,
            "instances": instances(world, instruction, kind, 2, rng),
            "is_classification": is_labelled(instruction),
        }
        for instruction, kind in SEED_TASKS.items()
    ]
    SEEDS.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    world = load_world()
    write_seeds(world)
    writer = Writer(world)
    with tempfile.TemporaryDirectory() as folder, RecordedEndpoint(writer) as server:
        made = SelfInstruct(generator=EndpointGenerator("recorded", server.url), config=CONFIG).run(SEEDS, folder)
    made.print()
    rows = [{"prompt": key, "text": text} for key, text in writer.said.items()]
    RECORDED.write_text(
        "".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: row["prompt"])), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
