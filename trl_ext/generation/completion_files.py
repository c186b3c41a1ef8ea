"""Files of prompts and completions, parquet or JSONL, read piece by piece."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from trl_ext.generation.sample_files import TOKENIZER_KEY
from trl_ext.sequences.text_shapes import with_text
from trl_ext.sequences.texts import Text
from trl_ext.trainer_kit.row_files import json_rows, mixtures_named

COLUMNS = ("prompt", "completion", "prompt_ids", "completion_ids", "ended", "generator", "seed")
REQUIRED = COLUMNS[:2]
IDS = COLUMNS[2:4]
ROW = "row"  # of files that a Grow or `generate` wrote: number of the prompt
SAMPLE = "sample"  # of the same: below 0, a completion of the data set, which the trainer mixes in itself
OWN = (ROW, SAMPLE)
LINES = 1000  # of a JSONL file that are read at a time


def completion_files(path: Path) -> list[Path]:
    """The file, or the parquet files of the folder, in order; of a part that is there twice, the scored one."""
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.parquet"))
    scored = {file.name.replace("scored-", "sampled-", 1) for file in files if file.name.startswith("scored-")}
    return [file for file in files if file.name not in scored]


def completion_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Read a file piece by piece, with those of COLUMNS that it has, and with ROW if it is one of our own.

    Raises:
        KeyError: Of a required column that it lacks.
    """
    return _jsonl_batches(path) if path.suffix == ".jsonl" else _parquet_batches(path)


def tokenizer_of(path: Path) -> str | None:
    """Fingerprint of the vocabulary that the file's token ids belong to; None if it has none, or does not say."""
    schema = pq.read_schema(path) if path.suffix == ".parquet" else pa.schema([])
    fingerprint = (schema.metadata or {}).get(TOKENIZER_KEY)
    return fingerprint.decode() if fingerprint is not None and set(IDS) & set(schema.names) else None


def key_of(prompt: Text) -> str:
    """What is equal for equal prompts, however a file stores messages.

    >>> key_of([{"role": "user", "content": "Hi", "name": None}]) == key_of([{"content": "Hi", "role": "user"}])
    True
    """
    return prompt if isinstance(prompt, str) else json.dumps(_plain(prompt), sort_keys=True)


def _plain(messages: list[dict]) -> list[dict]:
    """Messages as they are compared and given: with text in place of its parts, and without what is None."""
    return [without_nones(message) for message in with_text(messages)]


def without_nones(message: dict) -> dict:
    return {name: value for name, value in message.items() if value is not None}


def values_at(batch: pa.RecordBatch, at: int) -> dict[str, Any]:
    """A row with all of COLUMNS, None where it has no value."""
    values = {name: batch[name][at].as_py() if name in batch.schema.names else None for name in COLUMNS}
    for name in REQUIRED:
        if not isinstance(values[name], str):
            values[name] = _plain(values[name])
    return values


def is_text_or_messages(kind: pa.DataType) -> bool:
    """Whether a column of this type can be prompts or completions."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.types.is_struct(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        present = file.schema_arrow.names
        for name in REQUIRED:
            if name not in present:
                raise KeyError(name)
        own = all(name in present and pa.types.is_integer(file.schema_arrow.field(name).type) for name in OWN)
        columns = [name for name in COLUMNS if name in present]
        for batch in file.iter_batches(columns=[*columns, *(OWN if own else ())]):
            yield _with_messages(_sampled(batch))


def _sampled(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Without the data set's completions, where it has the columns OWN."""
    if SAMPLE not in batch.schema.names:
        return batch
    return batch.filter(pc.fill_null(pc.greater_equal(batch[SAMPLE], 0), True)).drop_columns([SAMPLE])


def _with_messages(batch: pa.RecordBatch) -> pa.RecordBatch:
    """With messages in place of what datasets writes of messages that have not all the same keys, which is JSON."""
    for name in REQUIRED:
        kind = batch[name].type
        if pa.types.is_list(kind) and isinstance(kind.value_type, pa.BaseExtensionType):
            messages = Dataset(pa.Table.from_batches([batch]))[name][:]
            messages = pa.array([with_text(value) for value in messages])
            batch = batch.set_column(batch.schema.get_field_index(name), name, messages)
    return batch


def _jsonl_batches(path: Path) -> Iterator[pa.RecordBatch]:
    rows, begin = json_rows(path), 0
    while chunk := list(islice(rows, LINES)):
        columns = {name: [row.get(name) for row in chunk] for name in COLUMNS}
        columns |= {name: [with_text(row[name]) for row in chunk] for name in REQUIRED}
        if all(type(row.get(name)) is int for row in chunk for name in OWN):
            columns |= {name: [row[name] for row in chunk] for name in OWN}
        with mixtures_named(columns, first=begin):
            batch = pa.RecordBatch.from_pydict(columns)
        begin += len(chunk)
        yield _sampled(batch)
