"""What there is to know in the small world, and how it is said and asked: names, values, sentences, questions."""

from dataclasses import dataclass

PEOPLE = (
    "Mia Tom Ana Ben Eva Leo Zoe Max Ida Sam Lea Jon Nora Paul Rosa Hugo Lily Otto Vera Adam Clara Felix Greta "
    "Oscar Julia Simon Maya David Alice Peter"
)
TOWNS = "Oakford Redhill Millbrook Stonebridge Ashwell Fernley Brookside Westgate Highmoor Lakeview Birchton Marlow"
PETS = "cat dog rabbit parrot horse goat duck hamster turtle pony"
COLORS = "black white brown grey red blue green yellow purple pink"


@dataclass(frozen=True)
class Attribute:
    """One thing that can be known: its possible values, two ways to say it ({s} subject, {v} value), two to ask it."""

    values: tuple[str, ...]
    sentences: tuple[str, str]
    questions: tuple[str, str]


def attribute(values: str, sentences: str, questions: str) -> Attribute:
    return Attribute(tuple(values.split()), tuple(sentences.split(" / ")), tuple(questions.split(" / ")))


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
