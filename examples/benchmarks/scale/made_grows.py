"""Files of a Grow of so many samples, made of random numbers: as it leaves them when it is sampled, scored or finished."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trl_ext.generation.sample_files import sample_schema, write_table
from trl_ext.self_training.grow_files import GrowFiles

PIECE = 10_000  # rows that are written at a time
SAMPLES = 4  # of a prompt, where there are several
A_PART = 64 * SAMPLES  # samples that are a file together
FURTHER = [
    ("duplicate", pa.bool_()),
    ("reward/r", pa.float64()),
    ("score", pa.float64()),
    ("key", pa.float64()),
    ("kept", pa.int32()),
]


def said(count: int, tokens: int, numbers: np.random.Generator) -> list[str]:
    """Completions of three words for each four tokens, as frequent as words are (Zipf), of 20,000 words."""
    words = np.minimum(numbers.zipf(1.2, (count, 3 * tokens // 4)), 20_000)
    return [" ".join(f"w{word}" for word in row) for row in words]


def sampled(
    start: int, count: int, tokens: int, numbers: np.random.Generator, *, samples: int = 1
) -> dict[str, pa.Array]:
    """Columns of some samples, by which each prompt has so many."""
    ids = pa.array(list(numbers.integers(5, 500, (count, tokens), dtype=np.int32)), pa.list_(pa.int32()))
    same = {"prompt": "of which colour is the cat?", "ended": True, "generator": "transformers", "seed": 0}
    columns = {name: pa.array([value] * count) for name, value in same.items()}
    places = np.arange(start, start + count)
    columns |= {"row": pa.array(places // samples), "sample": pa.array(places % samples)}
    return columns | {"prompt_ids": ids, "completion_ids": ids, "completion": pa.array(said(count, tokens, numbers))}


def table_of(columns: dict[str, pa.Array], schema: pa.Schema) -> pa.Table:
    return pa.table([columns[field.name].cast(field.type) for field in schema], schema=schema)


def finished_grow(folder: Path, rows: int, tokens: int) -> GrowFiles:
    """Finished: a sample of each prompt, all of them kept."""
    files, numbers = GrowFiles(folder, 0), np.random.default_rng(0)
    schema = pa.schema([*sample_schema(pa.string(), "t"), *FURTHER])
    with pq.ParquetWriter(files.finished, schema) as writer:
        for start, count in pieces(rows, PIECE):
            columns = sampled(start, count, tokens, numbers)
            columns |= {"duplicate": pa.array([False] * count), "kept": pa.array([1] * count)}
            columns |= {name: pa.array(numbers.random(count)) for name in ("reward/r", "score", "key")}
            writer.write_table(table_of(columns, schema))
    return files


def sampled_grow(folder: Path, rows: int, tokens: int) -> tuple[GrowFiles, int]:
    """Sampled, and not scored yet; with its number of parts."""
    files, numbers, schema = GrowFiles(folder, 0), np.random.default_rng(0), sample_schema(pa.string(), "t")
    for part, (start, count) in enumerate(pieces(rows, A_PART)):
        write_table(files.sampled(part), table_of(sampled(start, count, tokens, numbers, samples=SAMPLES), schema))
    return files, part + 1


def scored_grow(folder: Path, rows: int) -> tuple[GrowFiles, int]:
    """Scored, with the columns alone that selection reads; with its number of parts."""
    files, numbers = GrowFiles(folder, 0), np.random.default_rng(0)
    for part, (start, count) in enumerate(pieces(rows, A_PART)):
        columns = {"row": pa.array(np.arange(start, start + count) // SAMPLES, pa.int32())}
        columns |= {"score": pa.array(numbers.random(count)), "ended": pa.array([True] * count)}
        write_table(files.scored(part), pa.table(columns | {"duplicate": pa.array(numbers.random(count) < 0.05)}))
    return files, part + 1


def pieces(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """Where each begins, and how many rows it has.

    >>> list(pieces(5, 2))
    [(0, 2), (2, 2), (4, 1)]
    """
    return ((start, min(size, rows - start)) for start in range(0, rows, size))
