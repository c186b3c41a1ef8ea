"""Answers on disk, a line of JSON for each request or batch of them, written as they come: nobody is asked twice.

All else of a run follows from them, its seed and its settings, and is made again when it is resumed.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from trl_ext.generation.endpoint_errors import REMEDY, RefusedRequest, shown_prompt
from trl_ext.generation.given_generator import finished_parts
from trl_ext.generation.protocol import Generator, Part, Policy, Sampling
from trl_ext.self_instruct.answer_parsing import Answer
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.texts import Text, text_of

SHORTER = f"{REMEDY} A request is as long as the seeds that it shows: give shorter ones, or fewer (num_examples, human_in_context)."
Place = tuple[str, int]  # the step and the number of a batch in it


class KeptAnswers:
    """The answers of a run in a file.

    Args:
        path: Made with the first answer. A last line that a killed run has left half-written is taken away.
    """

    def __init__(self, path: Path):
        self._path = path
        self._found: dict[Place, dict] = {}
        if path.exists():
            whole, end, torn = path.read_bytes().rpartition(b"\n")
            if torn:
                os.truncate(path, len(whole) + len(end))
            self._found = dict(_read(line, path, number) for number, line in enumerate(whole.splitlines(), start=1))

    def __contains__(self, place: Place) -> bool:
        return place in self._found

    def of(self, place: Place, prompts: Iterable[Text]) -> list[Answer]:
        """Those of a batch; a ValueError if other prompts were asked."""
        found = self._found[place]
        if found["prompts"] != _digest(prompts):
            raise ValueError(
                f"SelfInstruct: {str(self._path)!r} has answers to other requests ({place[0]} {place[1]}): seeds, wording or "
                "version have changed. Give another folder, or remove that file yourself."
            )
        return [Answer(text, ended) for text, ended in found["answers"]]

    def add(self, place: Place, prompts: Iterable[Text], answers: list[Answer]) -> None:
        row = {"step": place[0], "batch": place[1], "prompts": _digest(prompts), "answers": answers}
        self._found[place] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@dataclass
class Asker:
    """Asks for what is not kept, and keeps it.

    Args:
        generator, policy: Who is asked.
        kept: The answers so far.
        batch_size: Requests that are made, and written down, together.
    """

    generator: Generator
    policy: Policy
    kept: KeptAnswers
    batch_size: int

    def ask(self, step: str, prompts: list[Text], sampling: Sampling, *, first: int = 0) -> Iterator[list[Answer]]:
        """The answers of each batch, in order.

        Args:
            step: What they are for; with a batch's number it is the place of its answers.
            prompts: One answer each.
            sampling: Of one sample.
            first: The first batch's number.
        """
        size = self.batch_size
        cuts = range(0, len(prompts), size)
        batches = {first + i: tuple(prompts[at : at + size]) for i, at in enumerate(cuts)}
        missing = [
            Part(index, tuple(range(index * size, index * size + len(batch))), batch)
            for index, batch in batches.items()
            if (step, index) not in self.kept
        ]
        for part, samples in self._finished(step, missing, sampling) if missing else ():
            said = {sample["row"]: Answer(text_of(sample["completion"]), bool(sample["ended"])) for sample in samples}
            answers = [said.get(row, Answer("", False)) for row in part.rows]
            self.kept.add((step, part.index), part.prompts, answers)
        for index, batch in batches.items():
            yield self.kept.of((step, index), batch)

    def _finished(self, step: str, parts: list[Part], sampling: Sampling) -> Iterator[tuple[Part, list[Sample]]]:
        """A server's refusal says what the request was for."""
        try:
            yield from finished_parts(self.generator, parts, sampling, self.policy)
        except RefusedRequest as error:
            raise error.of(f"SelfInstruct.run: a request for {step}, {shown_prompt(error.item)}", SHORTER) from None


def _digest(prompts: Iterable[Text]) -> str:
    return sha256(json.dumps(list(prompts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _read(line: bytes, path: Path, number: int) -> tuple[Place, dict]:
    try:
        row = json.loads(line)
        answers = [(text, ended) for text, ended in row["answers"]]
        if all(isinstance(text, str) and isinstance(ended, bool) for text, ended in answers):
            return (row["step"], row["batch"]), row
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(
        f"SelfInstruct: line {number} of {str(path)!r} is no answers of a run: it was changed after it was written. Take the "
        "line out, and only its requests are made again."
    )
