"""What stands in a model card, and whose a card is: no links that lead nowhere, no paths of the machine."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from trl_ext.trainer_kit.run_log import versions

CARD = "README.md"
MARK = "generated_from_trainer"  # a tag of every card that TRL writes
DRAFT = "[More Information Needed]"  # in every card that PEFT begins
CACHED = re.compile(r"models--(.+?)--(.+)")  # folder of a hub id in the hub's cache, which holds snapshots/<revision>
LINK = re.compile(r"\[(?P<name>[^\]\n]*)\]\(https://huggingface\.co/(?P<data>datasets/)?(?P=name)\)")
TRAINING, VERSIONS = "## Training procedure", "### Framework versions"  # headings of TRL's template


@dataclass(frozen=True)
class Paper:
    """One that a run's settings come from, beside its trainer's own.

    Args:
        name: Of the method.
        title: Of the paper.
        id: On arXiv.
        citation: In BibTeX.
    """

    name: str
    title: str
    id: str
    citation: str


@dataclass(frozen=True)
class CardFacts:
    """What is known of a model when its card is written.

    Args:
        base: Path or hub id of what it began as; empty: it has no name.
        is_adapter: Whether it is an adapter on that.
        data_name: Path or hub id of the data, if that was told.
        data: Data sets by what they were for; None where there was none.
        rewards: Names of what scored.
        results: As of `results`.
        bits: In how many its base was loaded; 0: as the checkpoint is.
        papers: That its settings come from, beside the trainer's own.
    """

    base: str
    is_adapter: bool
    data_name: str | None
    data: dict[str, Any]
    rewards: tuple[str, ...]
    results: dict[str, tuple[tuple[int, float], tuple[int, float]]]
    bits: int = 0
    papers: Sequence[Paper] = ()


# Names


def hub_id(name: str | None) -> str | None:
    """The id of a repository, also where it was given as a folder of the hub's cache; None for what is something else."""
    cached = [match for part in Path(name or "").parts if (match := CACHED.fullmatch(part))]
    if cached:
        return "/".join(cached[0].groups())
    if not name or name == "None" or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def public_name(name: str | None) -> str | None:
    """A hub id as it is; of a path the last part; None for none."""
    return hub_id(name) or (Path(name).resolve().name if name else None)


# Whose a card is


def is_strangers(folder: Path) -> bool:
    """Whether a folder has a README that neither a trainer nor PEFT has written."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else MARK
    return MARK not in text and DRAFT not in text


@contextmanager
def card_set_aside(folder: Path) -> Iterator[None]:
    """Inside, a folder has no README; after it, somebody else's is there as it was."""
    kept = (folder / CARD).read_bytes() if is_strangers(folder) else None
    (folder / CARD).unlink(missing_ok=True)
    try:
        yield
    finally:
        if kept is not None:
            (folder / CARD).write_bytes(kept)


# What is written into one


def complete_card(folder: Path, facts: CardFacts) -> None:
    """Put what is known of a run into the card that TRL has written, and take out links that lead nowhere."""
    card = ModelCard.load(folder / CARD)
    card.data.base_model = hub_id(facts.base)
    if facts.is_adapter:
        card.data.library_name = "peft"
    text = LINK.sub(lambda link: _linked(link, facts.base), card.text)
    text = text.replace('model="None"', f'model="{folder.resolve().name}"')
    card.text = with_section(text, "\n\n".join(_sections(facts)))
    card.save(folder / CARD)


def write_card(
    folder: Path, title: str, text: str, facts: CardFacts, *, tags: Sequence[str], behind: str | None = None
) -> None:
    """A card of what is no trainer's output as it is: what that is, its base, and what is known of the run.

    Args:
        folder: Where it goes.
        title, text: Of the card.
        facts: What is known.
        tags: Further ones.
        behind: What ends it, in the place of the versions.
    """
    data = ModelCardData(
        base_model=hub_id(facts.base),
        library_name="peft" if facts.is_adapter else "transformers",
        tags=[MARK, "trl-ext", *tags],
    )
    began = f"Its base is {_linked_base(facts.base)}." if facts.base else ""
    parts = [f"---\n{data.to_yaml()}\n---", f"# {title}", text, began, *_sections(facts), behind or _versions()]
    (folder / CARD).write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def training_told(run: Path) -> str | None:
    """What the card of a run says of its training, from there to its end; None where it has none of a trainer's."""
    card = run / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    return text[text.index(TRAINING) :].rstrip() if MARK in text and TRAINING in text else None


def _versions() -> str:
    return "\n".join([VERSIONS, "", *(f"- {name}: {number}" for name, number in versions().items())])


def with_section(text: str, section: str) -> str:
    """A card's text with a section before the versions that it ends with."""
    before, heading, behind = text.partition(VERSIONS)
    return f"{before.rstrip()}\n\n{section}\n\n{heading}{behind}" if section else text


def _linked(link: re.Match, base: str) -> str:
    """A link to the hub that TRL has written for the base or the data: as it is where it can lead to something."""
    if link["data"]:
        return link[0] if hub_id(link["name"]) else f"`{public_name(link['name'])}`"
    return _linked_base(base)


def _linked_base(base: str) -> str:
    if not base:
        return "a model without a name"
    there = hub_id(base)
    return f"[{there}](https://huggingface.co/{there})" if there else f"`{public_name(base)}` (a local model)"


def results(log: list[dict[str, Any]], shown: Sequence[str]) -> dict[str, tuple[tuple[int, float], tuple[int, float]]]:
    """Of each metric that matters, and its held-out twin, the first and the last: step and value."""
    found = {}
    for name in (*shown, *(f"eval_{name}" for name in dict.fromkeys((*shown, "loss", "score")))):
        values = [(line["step"], line[name]) for line in log if isinstance(line.get(name), int | float)]
        if values:
            found[name] = (values[0], values[-1])
    return found


def _sections(facts: CardFacts) -> list[str]:
    told = [
        f"Its settings are those of {paper.name}, introduced in [{paper.title}](https://huggingface.co/papers/{paper.id})."
        for paper in facts.papers
    ]
    data = [line for use, rows in facts.data.items() if rows is not None for line in _described(use, rows)]
    if facts.data_name and not hub_id(facts.data_name):
        data.insert(0, f"- read from: `{public_name(facts.data_name)}`")
    if facts.rewards:
        data.append("- rewards: " + ", ".join(f"`{public_name(name)}`" for name in facts.rewards))
    if facts.bits:
        told.append(f"Its base was loaded in {facts.bits} bits (bitsandbytes).")
    if data:
        told.append("### Data\n\n" + "\n".join(data))
    if facts.results:
        told.append("### Results\n\n" + "\n".join(_table(facts.results)))
    return told


def _described(use: str, rows: Any) -> Iterator[str]:
    """How many rows, and of what columns; of several sets, each."""
    if isinstance(rows, dict):
        for name, one in rows.items():
            yield from _described(f"{use}, {name}", one)
        return
    columns = getattr(rows, "column_names", None)
    of = f" of {', '.join(f'`{column}`' for column in columns)}" if columns else ""
    yield f"- {use}: {f'{len(rows):,} rows' if hasattr(rows, '__len__') else 'a stream'}{of}"


def _table(found: dict[str, tuple[tuple[int, float], tuple[int, float]]]) -> Iterator[str]:
    yield "| | first logged | last logged |\n|---|---|---|"
    for name, (first, last) in found.items():
        yield f"| {name} | {first[1]:.4g} (step {first[0]}) | {last[1]:.4g} (step {last[0]}) |"
