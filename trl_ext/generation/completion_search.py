"""Which completions of a file are whose: by the number of the prompt's row where the file says it, else by its text."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import pyarrow as pa

from trl_ext.generation.completion_files import ROW, key_of, values_at
from trl_ext.sequences.texts import Text

Asked = list[tuple[int, Text]]  # number of the prompt's row, and the prompt
Place = tuple[str, int | None]  # a prompt's key, with the number of its row; None: wherever that prompt occurs
Location = tuple[pa.RecordBatch, int]


@dataclass
class Found:
    """The completions of the prompts that are asked for.

    Args:
        locations: Of each place, in the file's order, at most K.
        counts: How many the file has of each place.
        numbers: The rows at which the file has each prompt, where it says it.
    """

    locations: dict[Place, list[Location]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[Place] = field(default_factory=Counter)
    numbers: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def place(self, row: int, prompt: Text) -> Place:
        """That of this row, if the file has it with this prompt, else that of all rows with the prompt."""
        key = key_of(prompt)
        return (key, row if (key, row) in self.counts else None)

    def places(self, asked: Asked) -> list[Place]:
        """Each place of what is asked for, once."""
        return list(dict.fromkeys(self.place(row, prompt) for row, prompt in asked))

    def rows(self, place: Place) -> list[dict[str, Any]]:
        """A place's completions, None where one has no value."""
        return [values_at(batch, at) for batch, at in self.locations.get(place, ())]

    def drop(self, place: Place, keep: list[bool]) -> None:
        self.locations[place] = list(compress(self.locations[place], keep))


def find(batches: Iterable[pa.RecordBatch], asked: Asked, *, limit: int) -> Found:
    """Search a file for the prompts that are asked for. Only what is found stays in memory, `limit` of each place."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for row, prompt in asked:
        numbers[key_of(prompt)].add(row)
    found = Found()
    for batch in batches:
        keep: list[tuple[int, list[Place]]] = []
        rows = batch[ROW].to_pylist() if ROW in batch.schema.names else [None] * len(batch)
        for at, (prompt, row) in enumerate(zip(batch["prompt"].to_pylist(), rows, strict=True)):
            key = None if prompt is None else key_of(prompt)
            if key in numbers and batch["completion"][at].is_valid:
                places: list[Place] = [(key, None), *([(key, row)] if row in numbers[key] else [])]
                found.counts.update(places)
                found.numbers[key].update([] if row is None else [row])
                keep.append((at, [place for place in places if found.counts[place] <= limit]))
        keep = [(at, places) for at, places in keep if places]
        kept = batch.take(pa.array([at for at, _ in keep], pa.int64()))
        for at, (_, places) in enumerate(keep):
            for place in places:
                found.locations[place].append((kept, at))
    return found


def notes(found: Found, asked: Asked, *, limit: int) -> list[str]:
    """What a user may not expect of what was found, one sentence each."""
    places = [found.place(row, prompt) for row, prompt in asked]
    said = []
    shared = {
        place: n for place, n in Counter(p for p in places if p[1] is None and p in found.counts).items() if n > 1
    }
    if shared:
        said.append(
            f"{sum(shared.values())} of the {len(asked)} prompts asked for repeat {len(shared)} prompts, e.g. "
            f"{_shown(shared)} {max(shared.values())} times, and each time they get the same completions: the file does "
            "not say which are whose"
        )
    moved = {place: len(found.numbers[place[0]]) for place in places if place[1] is None and place[0] in found.numbers}
    moved = {place: n for place, n in moved.items() if n > 1}
    if moved:
        said.append(
            f"{len(moved)} prompts stand at other rows here than in the file, which has them at several, e.g. "
            f"{_shown(moved)} at {max(moved.values())}: they get the completions of all of these"
        )
    more = {place: found.counts[place] for place in places if found.counts[place] > limit}
    if more:
        said.append(
            f"{len(more)} prompts have more than num_generations={limit} completions, e.g. {_shown(more)} "
            f"{max(more.values())}, of which the first are taken. Raise num_generations for all"
        )
    missing = [prompt for place, (_, prompt) in zip(places, asked, strict=True) if place not in found.counts]
    if missing and found.counts:
        said.append(f"it has no completion for {len(missing)} of the {len(asked)} prompts, e.g. {missing[0]!r}")
    return said


def _shown(counts: dict[Place, int]) -> str:
    """The prompt with the largest count."""
    return repr(max(counts, key=lambda place: counts[place])[0][:80])
