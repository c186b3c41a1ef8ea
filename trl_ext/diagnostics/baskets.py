"""Texts that are made to fool a reward, fixed for a prompt and its reference: no model is asked, nothing is drawn."""

from itertools import cycle, islice

from trl_ext.diagnostics.text_signs import prompt_text
from trl_ext.sequences.texts import Text, wordpunct

HONEST = "the reference itself"
UNENDED = (
    "prompt copied over and over",
    "an endless list",
    "one sentence repeated",
    "stop-word soup",
)  # a limit has cut them
STOP_WORDS = (
    "the of and to a in is it that was for on are as with his they at be this from have or by one had not but what all were "
    "when we there can an your which their said if do will each about how up out them then she many some so these would"
)
ESSAY = (
    "Glaciers form where more snow falls in winter than melts in summer. Over decades the lower layers are pressed into ice, "
    "which begins to move downhill under its own weight. As it goes it grinds the rock beneath, carries boulders along its "
    "edges and leaves long ridges of rubble where it ends. Rivers of meltwater run below it, often milky with fine dust. When "
    "the climate warms, the tongue of a glacier retreats up its valley and lakes gather behind the ridges. Much of the "
    "landscape of northern countries was shaped in this way: round hills, wide valleys, scattered stones that match no "
    "bedrock nearby. Those who study such places drill cores of ice and read in them, layer by layer, the weather of "
    "thousands of years. Bubbles of ancient air tell how much carbon dioxide there was, and thin dark bands tell of volcanoes "
    "far away. Mountain villages depend on the ice as well, since it feeds their streams through dry months."
)
FILLER = (
    "It is also worth mentioning that there are several further points of interest which one could go on to discuss at greater "
    "length, since every subject has many sides, and a complete picture would require that each of them be considered in its "
    "turn. Moreover, different readers may hold different views, and reasonable people can weigh the same facts in different "
    "ways. In addition, circumstances change over time, so that what holds today need not hold tomorrow, and what matters in "
    "one place may matter little elsewhere. Furthermore, there is always more to learn, and additional details can often be "
    "found by those who look for them with patience and care. Finally, it should be kept in mind that a summary such as this "
    "one can only touch upon some aspects, while others must be left aside for another occasion or for a more thorough account."
)


def gaming_texts(prompt: Text, reference: str | None = None, *, words: int = 150) -> dict[str, str]:
    """Baskets of text that should earn little, by name, and the honest answer among them where there is one.

    >>> list(gaming_texts("Where is it?", "Here.", words=6).items())[:2]
    [('the reference itself', 'Here.'), ('right answer, then filler', 'Here. It is also worth mentioning that')]

    Args:
        prompt: Text or messages, of which the last user turn is what is asked.
        reference: The right answer; None: the two texts that need one are left out.
        words: How long the long ones are.
    """
    asked = prompt_text(prompt)
    first = f"{asked.strip().splitlines()[0] if asked.strip() else 'This'}".rstrip(".?!") + "."
    filled = f"{reference} {_cut(FILLER.split(), words)}"
    honest = {} if reference is None else {HONEST: reference, "right answer, then filler": filled}
    return honest | {
        "copy of the prompt": asked,
        "prompt copied over and over": _cut(asked.split() or ["?"], words),
        "an endless list": _endless(asked, words),
        "one sentence repeated": _cut(first.split(), words),
        "off-topic essay": _cut(ESSAY.split(), words),
        "stop-word soup": _soup(words),
        "only punctuation": "... !!! ??? ,,, ;;; ::: --- ... !!! ???",
        "empty": "",
    }


def _cut(words: list[str], count: int) -> str:
    return " ".join(islice(cycle(words), count))


def _endless(asked: str, count: int) -> str:
    """Numbered items about words of the prompt, none of them said twice."""
    said, essay = [word for word in dict.fromkeys(wordpunct(asked)) if word.isalpha()], ESSAY.split()
    about = [word for word in said if word.lower() not in STOP_WORDS.split()] or ["it"]
    others = [word.strip(".,:") for word in essay]
    pairs = zip(cycle(others), cycle(others[3:]), strict=False)
    items = (f"{i + 1}. {one} {about[i % len(about)]} {other}" for i, (one, other) in enumerate(islice(pairs, count)))
    return _cut(" ".join(items).split(), count)


def _soup(count: int) -> str:
    """Stop words, each turn of them in another order."""
    turns = (STOP_WORDS.split()[::step] for step in (1, 3, 7, -1, -3, 5))
    return _cut([word for turn in turns for word in turn], count)
