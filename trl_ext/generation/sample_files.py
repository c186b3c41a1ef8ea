"""A file of samples: parts of prompts while they are sampled, one parquet file when all are there. Each is complete or absent.

samples/sampled-00003.parquet    a part's samples, before they are scored
samples/scored-00003.parquet     the same with scores and log-probabilities
samples.parquet                  all of them
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from numpy.typing import NDArray

from trl_ext.generation.given_generator import finished_parts
from trl_ext.generation.protocol import Generator, Part, Policy, Sampling
from trl_ext.sequences.samples import Sample
from trl_ext.trainer_kit.run_record import RECORD_NAME
from trl_ext.trainer_kit.whole_files import remove_leftovers, written_whole

PART_NAME = re.compile(r"(sampled|scored)-\d{5,}\.parquet|kept-\d+\.arrow")
TOKENIZER_KEY = b"tokenizer"  # of the schema's metadata: the fingerprint of the vocabulary that the ids belong to


def sample_schema(prompt: pa.DataType, tokenizer: str) -> pa.Schema:
    """The columns of samples before they are scored.

    Args:
        prompt: Type of a prompt, text or messages, from which that of the completions follows; see `prompt_type`.
        tokenizer: Fingerprint of the vocabulary, kept as metadata.
    """
    is_text = not pa.types.is_nested(prompt)
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            ("row", pa.int32()),
            ("sample", pa.int32()),
            ("prompt", pa.string() if is_text else prompt),
            ("completion", pa.string() if is_text else pa.list_(message)),
            ("prompt_ids", pa.list_(pa.int32())),
            ("completion_ids", pa.list_(pa.int32())),
            ("ended", pa.bool_()),
            ("generator", pa.string()),
            ("seed", pa.int64()),
        ],
        metadata={TOKENIZER_KEY: tokenizer.encode()},
    )


def prompt_type(dataset: Dataset) -> pa.DataType:
    """Arrow's type of a data set's prompts, which holds for all rows; no row is read."""
    return dataset.features.arrow_schema.field("prompt").type


def write_table(path: Path, table: pa.Table) -> None:
    with written_whole(path) as partial:
        pq.write_table(table, partial)


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a parquet file; a ValueError if it is damaged, which says what to do so that all else stays in use."""
    try:
        return pq.ParquetFile(path).read(columns)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): it was changed after it was written. Delete this "
            "one file and go on with train(resume_from_checkpoint=True), or the same command again: only what was in it "
            "is made again."
        ) from error


@dataclass(frozen=True)
class SampleFiles:
    """A parquet file of samples, and its parts until it is finished.

    Args:
        finished: The file; its parts are in a folder beside it, of the same name without the suffix.
    """

    finished: Path

    @property
    def parts(self) -> Path:
        return self.finished.with_suffix("")

    def sampled(self, part: int) -> Path:
        return self.parts / f"sampled-{part:05d}.parquet"

    def scored(self, part: int) -> Path:
        return self.parts / f"scored-{part:05d}.parquet"

    def is_sampled(self, part: int) -> bool:
        return self.sampled(part).exists() or self.scored(part).exists()

    def write_sampled(self, part: int, samples: list[Sample], schema: pa.Schema) -> None:
        write_table(self.sampled(part), pa.Table.from_pylist(samples, schema=schema))

    def score(self, part: int, add_scores: Callable[[pa.Table], pa.Table]) -> None:
        """Write the scored part beside the sampled one, and remove that."""
        if not self.scored(part).exists():
            write_table(self.scored(part), add_scores(read_table(self.sampled(part))))
        self.sampled(part).unlink(missing_ok=True)

    def column(self, parts: int, names: list[str]) -> pa.Table:
        """Some columns of all scored parts, in order."""
        return pa.concat_tables([read_table(self.scored(part), names) for part in range(parts)])

    def finish(self, parts: int, columns: dict[str, pa.Array], metadata: dict[bytes, bytes] | None = None) -> None:
        """Join the scored parts to the finished file, part by part, with further columns, one value per sample each."""
        with written_whole(self.finished) as partial:
            writer, start = None, 0
            for part in range(parts):
                table = read_table(self.scored(part))
                for name, values in columns.items():
                    table = table.append_column(name, values.slice(start, len(table)))
                start += len(table)
                table = table.replace_schema_metadata((table.schema.metadata or {}) | (metadata or {}))
                writer = writer or pq.ParquetWriter(partial, table.schema)
                writer.write_table(table)
            writer.close()
        self.tidy()

    def tidy(self) -> None:
        """Remove the parts of a Grow that is finished, also of one whose run died while it removed them."""
        if self.finished.exists():
            self.remove_parts()

    def remove_parts(self) -> None:
        """Remove what was written here, by its exact names, and the folder for it unless something else is in it.

        The record goes last: as long as anything is there, it says whose it is.
        """
        if not self.parts.is_dir():
            return
        for names in (PART_NAME, RECORD_NAME):
            remove_leftovers(self.parts, names)
            for path in list(self.parts.iterdir()):
                if names.fullmatch(path.name) and path.is_file():
                    path.unlink()
        with suppress(OSError):  # somebody else's files are in it
            self.parts.rmdir()


class Parts(Sequence[Part]):
    """The prompts of a Grow, cut into parts. Each is read from the data set when it is asked for, and not kept here.

    >>> parts = Parts(Dataset.from_dict({"prompt": ["a", "b", "c", "d"]}), [0, 1, 3], size=2)
    >>> [*parts[1:]]
    [Part(index=1, rows=(3,), prompts=('d',))]

    Args:
        dataset: With the column `prompt`.
        rows: Numbers of those that are asked; None: all.
        size: Prompts in a part; the last one has fewer.
        indices: Of the parts that are here; None: all.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: Sequence[int] | NDArray[np.integer] | None = None,
        *,
        size: int,
        indices: Sequence[int] | None = None,
    ):
        self._prompts = dataset.select_columns("prompt")
        self._rows = range(len(dataset)) if rows is None else np.asarray(rows, np.int64)
        self._size = size
        self.indices = range(0, -(-len(self._rows) // size)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int | slice) -> "Part | Parts":
        if isinstance(place, slice):
            return self._of(self.indices[place])
        index = self.indices[place]
        rows = tuple(int(row) for row in self._rows[index * self._size : (index + 1) * self._size])
        return Part(index, rows, tuple(self._prompts[list(rows)]["prompt"]))

    def missing(self, files: SampleFiles) -> "Parts":
        """Those whose samples are not on disk."""
        return self._of([index for index in self.indices if not files.is_sampled(index)])

    def _of(self, indices: Sequence[int]) -> "Parts":
        return Parts(self._prompts, self._rows, size=self._size, indices=indices)


def sample_missing(
    files: SampleFiles,
    parts: Parts,
    generator: Generator,
    sampling: Sampling,
    policy: Policy,
    *,
    schema: pa.Schema,
    complete: Callable[[Part, list[Sample]], list[Sample]] = lambda part, samples: samples,
) -> Iterator[Part]:
    """Sample the parts that are not on disk, and write each as it comes, as `complete` makes it; yields them."""
    missing = parts.missing(files)
    if missing:
        for part, samples in finished_parts(generator, missing, sampling, policy):
            files.write_sampled(part.index, complete(part, samples), schema)
            yield part
