"""What a language model is asked about a query: which of two letters names its type, in both orders of the letters."""

import re
from zlib import crc32

MEANING = {
    "closed": "closed: one answer, or a few that say the same, can be right. A reference answer would show whether "
    "another answer is right: facts, sums, classification, extraction, translation, correction, code, summaries.",
    "open": "open: many answers that differ in what they say can be good: stories, advice, ideas, opinions, plans, "
    "letters, recommendations.",
}
QUESTION = """Which type is the query of?

{options}

Query:
{query}

Answer with one letter, A or B."""
ORDERS = (("open", "closed"), ("closed", "open"))  # of A and B: a liking for a letter cancels over both
LONGEST = 2000  # characters of a query that are shown
THOUGHT = re.compile(r"<think>.*?(</think>|$)", re.S)
FIRST = re.compile(
    r"\W*(?:answer|type|option)?\W*([AB])(?=\W*$|\s*[^\w\s])", re.I
)  # in whatever case, with a mark behind it
LETTER = re.compile(r"\b(?:A(?!\s+(?!is\b|or\b|and\b|because\b|since\b)\w)|B)\b")  # "A closed one" has an article


def question(query: str, order: tuple[str, str], examples: tuple[tuple[str, str], ...] = ()) -> list[dict]:
    """As messages; examples are turns before it.

    >>> question("Why?", ORDERS[0])[0]["content"].splitlines()[2][:7]
    'A) open'
    """
    shown = [
        {"role": role, "content": content}
        for example, kind in examples
        for role, content in (("user", _asked(example, order)), ("assistant", letter_of(kind, order)))
    ]
    return [*shown, {"role": "user", "content": _asked(query, order)}]


def question_text(query: str, order: tuple[str, str], examples: tuple[tuple[str, str], ...] = ()) -> str:
    """As text for a model without a chat template; the letter follows behind a blank."""
    shown = [f"{_asked(example, order)}\nAnswer: {letter_of(kind, order)}\n\n" for example, kind in examples]
    return f"{''.join(shown)}{_asked(query, order)}\nAnswer:"


def asked_by(examples: tuple[tuple[str, str], ...] = ()) -> str:
    """Tells questions apart by all that is said in them but the query."""
    return f"{crc32(repr((QUESTION, MEANING, ORDERS, examples)).encode()):08x}"


def letter_of(query_type: str, order: tuple[str, str]) -> str:
    return "AB"[order.index(query_type)]


def type_of(answer: str, order: tuple[str, str]) -> str | None:
    """The type that an answer names, by its letter or its word; None where it names neither.

    >>> type_of("The answer is B", ORDERS[0]), type_of("A closed question.", ORDERS[0]), type_of("It depends.", ORDERS[0])
    ('closed', 'closed', None)
    """
    said = THOUGHT.sub("", answer).strip()
    first = FIRST.match(said)
    letters = {first[1].upper()} if first else set(LETTER.findall(said))
    if letters:
        return order["AB".index(letters.pop())] if len(letters) == 1 else None
    named = {word for word in re.findall(r"\w+", said.lower()) if word in order}
    return named.pop() if len(named) == 1 else None


def _asked(query: str, order: tuple[str, str]) -> str:
    options = "\n".join(f"{letter}) {MEANING[kind]}" for letter, kind in zip("AB", order, strict=True))
    return QUESTION.format(options=options, query=query[:LONGEST])
