"""Completions that exist already: an expert's, people's, or an earlier run's, from a parquet or JSONL file."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from trl_ext.generation.completion_files import (
    COLUMNS,
    IDS,
    REQUIRED,
    completion_batches,
    completion_files,
    is_text_or_messages,
    key_of,
    tokenizer_of,
    values_at,
)
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.sequences.samples import Sample, as_completion
from trl_ext.sequences.texts import Text, text_of
from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.row_files import UNREADABLE

Found = dict[str, list[tuple[pa.RecordBatch, int]]]  # by prompt: where its completions are


class FileGenerator:
    """Gives each prompt the completions that a file has for it, in the file's order, at most K.

    Prompts are matched as they are written. A prompt that the file lacks gets none. The sampling settings, apart
    from K, mean nothing here. Only the rows that are asked for stay in memory.

    Args:
        path: A .parquet or .jsonl file, or a folder of .parquet files, e.g. `grow-000.parquet` of an earlier run. Its
            columns: `prompt` and `completion` (text or messages); if it has them also `prompt_ids`,
            `completion_ids`, `ended` (true where missing), `generator` (the file's name where missing) and `seed`.

    Raises:
        ValueError: If it is missing, empty, damaged, lacks a column, or holds ids of another vocabulary.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = f"file:{self.path.name}"
        self._files = self._find_files()
        first = next(self._batches(), None)
        if first is None:
            raise self._error("it has no rows", "Give a file with at least one prompt and its completion")
        for name in REQUIRED:
            if not is_text_or_messages(first[name].type):
                raise self._error(f"its column {name!r} is of {first[name].type}", "It must be text or messages")

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
        found = self._find([prompt for part in parts for prompt in part.prompts], sampling.num_generations)
        if not found and parts and parts[0].index == 0:  # else other parts may have had theirs before
            raise self._error(
                f"it has none of the prompts asked for, e.g. {parts[0].prompts[0]!r}; its first is "
                f"{next(self._batches())['prompt'][0].as_py()!r}",
                "Prompts must be the same to the letter, and text or messages on both sides",
            )
        self._check_ids(found, policy)
        for part in parts:
            rows = zip(part.rows, part.prompts, strict=True)
            yield part, [sample for row, prompt in rows for sample in self._samples(row, prompt, found)]

    def _samples(self, row: int, prompt: Text, found: Found) -> list[Sample]:
        samples = []
        for number, (batch, at) in enumerate(found.get(key_of(prompt), ())):
            values = values_at(batch, at)
            samples.append(
                Sample(
                    row=row,
                    sample=number,
                    prompt=prompt,
                    completion=self._in_form(prompt, values["completion"]),
                    prompt_ids=values["prompt_ids"],
                    completion_ids=values["completion_ids"],
                    ended=True if values["ended"] is None else values["ended"],
                    generator=values["generator"] or self.name,
                    seed=-1 if values["seed"] is None else values["seed"],
                )
            )
        return samples

    def _in_form(self, prompt: Text, completion: Text) -> Text:
        """The completion as text for text, as messages for messages."""
        if isinstance(completion, str):
            return as_completion(prompt, completion)
        if isinstance(prompt, str):
            raise self._error(
                f"prompt {prompt!r} is text, but its completion is messages", "Give both as text or both as messages"
            )
        return completion

    def _find(self, prompts: list[Text], limit: int) -> Found:
        """The rows that are asked for, at most `limit` of each prompt."""
        asked = {key_of(prompt) for prompt in prompts}
        found: Found = defaultdict(list)
        counts: Counter[str] = Counter()
        for batch in self._batches():
            keep: list[tuple[str, int]] = []
            for at, prompt in enumerate(batch["prompt"].to_pylist()):
                key = None if prompt is None else key_of(prompt)
                if key in asked and batch["completion"][at].is_valid and counts[key] < limit:
                    counts[key] += 1
                    keep.append((key, at))
            kept = batch.take(pa.array([at for _, at in keep], pa.int64()))
            for at, (key, _) in enumerate(keep):
                found[key].append((kept, at))
        return dict(found)

    def _check_ids(self, found: Found, policy: Policy) -> None:
        """Raise if ids are of another vocabulary: as our own files say, or as the first row that has them shows."""
        ours, theirs = tokenizer_fingerprint(policy.tokenizer), [tokenizer_of(path) for path in self._files]
        for path, fingerprint in zip(self._files, theirs, strict=True):
            if fingerprint not in (None, ours):
                raise self._other_tokenizer(f"{path.name} was made with {fingerprint}, the policy has {ours}")
        if None not in theirs:
            return
        row = _first_with_ids(found)
        if row["completion_ids"] is not None:
            text = text_of(row["completion"])
            decoded = text_of(policy.completion_texts([row["prompt"]], [row["completion_ids"]])[0])
            if decoded.strip() != text.strip():
                raise self._other_tokenizer(f"the ids of {text[:80]!r} are {decoded[:80]!r} to the policy")
        if row["prompt_ids"] is not None and row["prompt_ids"] != policy.prompt_ids(row["prompt"]):
            raise self._other_tokenizer(f"the prompt_ids of {row['prompt']!r} are not what the policy reads")

    def _other_tokenizer(self, what: str) -> ValueError:
        return self._error(
            f"a generator with another tokenizer: {what}",
            "Drop the columns prompt_ids and completion_ids, or give the tokenizer that made them",
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
        except UNREADABLE as error:
            raise self._error(
                f"it cannot be read ({str(error).splitlines()[0]})",
                "It is damaged or not what its name says: get it anew",
            ) from error

    def _error(self, what: str, remedy: str) -> ValueError:
        return ValueError(f"FileGenerator({str(self.path)!r}): {what}. {remedy}.")


def _first_with_ids(found: Found) -> dict[str, Any]:
    """The first row that has token ids; without any, a row of None."""
    for places in found.values():
        for batch, at in places:
            if any(name in batch.schema.names and batch[name][at].is_valid for name in IDS):
                return values_at(batch, at)
    return dict.fromkeys(COLUMNS)
