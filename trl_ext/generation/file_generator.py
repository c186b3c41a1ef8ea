"""Completions that exist already: an expert's, people's, or an earlier run's, from a parquet or JSONL file."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from trl_ext.generation.completion_checks import DROP_IDS, RowChecks, WrongRow, in_form
from trl_ext.generation.completion_files import (
    REQUIRED,
    completion_batches,
    completion_files,
    is_text_or_messages,
    tokenizer_of,
)
from trl_ext.generation.completion_search import Asked, Found, find, notes
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.sequences.samples import Sample
from trl_ext.sequences.text_shapes import EXPECTED, fault_of, shown
from trl_ext.sequences.texts import Text
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.row_files import UNREADABLE, MixedColumn


class FileGenerator:
    """Gives each prompt the completions that a file has for it, in the file's order, at most K.

    In a file that a Grow or `trl-ext generate` wrote, a prompt gets what was made for its row. Else prompts are matched
    as they are written, and those that repeat get the same. A prompt that the file lacks gets none. A completion longer
    than `max_completion_length` is left out. A warning counts each of these. The other sampling settings, apart from K,
    mean nothing here. Only the rows that are asked for stay in memory.

    Args:
        path: A .parquet or .jsonl file, or a folder of .parquet files, e.g. `grow-000.parquet` of an earlier run. Its
            columns: `prompt` and `completion` (text or messages); if it has them also `prompt_ids`,
            `completion_ids`, `ended` (true where missing), `generator` (the file's name where missing) and `seed`; with
            `row` and `sample`, whole numbers, it is one of our own.

    Raises:
        ValueError: If it is missing, empty, damaged, lacks a column, or holds ids that are not their text's. What is
            asked for is checked before the first part comes.
    """

    samples_policy = False

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = f"file:{self.path.name}"
        self._files = self._find_files()
        first = next(self._batches(), None)
        if first is None:
            raise self._error("it has no rows", "Give a file with at least one prompt and its completion")
        for name in REQUIRED:
            self._check_column(name, first[name])

    def settings(self) -> dict[str, Any]:
        """Which file it is: its name, and a digest of all it holds."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self._files:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return {"generator": "file", "file": self.path.name, "digest": digest.hexdigest()}

    def generate(
        self, parts: Iterable[Part], sampling: Sampling, policy: Policy
    ) -> Iterator[tuple[Part, list[Sample]]]:
        """Yield each part with what the file has for it."""
        parts = list(parts)
        asked = [pair for part in parts for pair in zip(part.rows, part.prompts, strict=True)]
        found = find(self._batches(), asked, limit=sampling.num_generations)
        if not found.counts and parts and parts[0].index == 0:  # else other parts may have had theirs before
            raise self._error(
                f"it has none of the prompts asked for, e.g. {parts[0].prompts[0]!r}; its first is {self._first()!r}",
                "Prompts must be the same to the letter, and text or messages on both sides",
            )
        self._check_vocabulary(policy)
        self._check(found, asked, sampling, policy)
        for part in parts:
            rows = zip(part.rows, part.prompts, strict=True)
            yield part, [sample for row, prompt in rows for sample in self._samples(row, prompt, found)]

    def _check_column(self, name: str, values: pa.Array) -> None:
        """Raise unless a column's type and first value are those of text or messages."""
        value = next((value for value in values.to_pylist() if value is not None), None)
        fault = None if value is None else fault_of(value, may_be_empty=True)
        if fault is not None:
            what = f"its column {name!r} is of {values.type}, e.g. {shown(value)}: expected {EXPECTED}, {fault.what}"
            raise self._error(what, fault.remedy_for(name).removesuffix("."))
        if not is_text_or_messages(values.type):
            raise self._error(f"its column {name!r} is of {values.type}", "It must be text or messages")

    def _samples(self, row: int, prompt: Text, found: Found) -> list[Sample]:
        return [
            Sample(
                row=row,
                sample=number,
                prompt=prompt,
                completion=in_form(prompt, values["completion"]),
                prompt_ids=values["prompt_ids"],
                completion_ids=values["completion_ids"],
                ended=True if values["ended"] is None else values["ended"],
                generator=values["generator"] or self.name,
                seed=-1 if values["seed"] is None else values["seed"],
            )
            for number, values in enumerate(found.rows(found.place(row, prompt)))
        ]

    def _check(self, found: Found, asked: Asked, sampling: Sampling, policy: Policy) -> None:
        """Raise for a row that is not what it says, leave out what is too long, and warn of what may not be expected."""
        checks = RowChecks(policy, sampling.max_completion_length)
        said, long = notes(found, asked, limit=sampling.num_generations), []
        for place in found.places(asked):
            rows = found.rows(place)
            try:
                checks.check(rows)
            except WrongRow as error:
                raise self._error(*error.args) from None
            fits = [checks.fits(row) for row in rows]
            if not all(fits):
                found.drop(place, fits)
                long += [row["prompt"] for row, fit in zip(rows, fits, strict=True) if not fit]
        if long:
            said.append(
                f"{len(long)} completions are longer than max_completion_length={sampling.max_completion_length} and "
                f"are left out, e.g. of prompt {long[0]!r}. Raise it, or shorten them"
            )
        for sentence in said:
            warnings.warn(f"FileGenerator({str(self.path)!r}): {sentence}.", stacklevel=3)

    def _check_vocabulary(self, policy: Policy) -> None:
        """Raise if ids are of another vocabulary, as our own files say."""
        ours = tokenizer_fingerprint(policy.tokenizer)
        for path in self._files:
            if tokenizer_of(path) not in (None, ours):
                raise self._error(
                    f"a generator with another tokenizer: {path.name} was made with {tokenizer_of(path)}, the policy "
                    f"has {ours}",
                    DROP_IDS,
                )

    def _find_files(self) -> list[Path]:
        if not self.path.exists():
            raise self._error("there is no such file", "Give the path of a .parquet or .jsonl file")
        files = completion_files(self.path)
        if not files or files[0].suffix not in (".parquet", ".jsonl"):
            raise self._error(
                "it is neither a .parquet or .jsonl file nor a folder with .parquet files",
                "Convert it to one of these",
            )
        return files

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, with those of COLUMNS that there are."""
        try:
            for path in self._files:
                yield from completion_batches(path)
        except KeyError as error:
            raise self._error(f"it has no column {error}", f"It needs the columns {', '.join(REQUIRED)}") from error
        except MixedColumn as error:
            raise self._error(f"it cannot be read: {error}", "Give one kind in all rows") from error
        except UNREADABLE as error:
            raise self._error(
                f"it cannot be read ({str(error).splitlines()[0]})",
                "It is damaged or not what its name says: get it anew",
            ) from error

    def _first(self) -> Text | None:
        """Its first prompt; None if it holds only completions that a data set had."""
        return next((batch["prompt"][0].as_py() for batch in self._batches() if len(batch)), None)

    def _error(self, what: str, remedy: str) -> ValueError:
        return ValueError(f"FileGenerator({str(self.path)!r}): {what}. {remedy}.")
