"""Which prompts a stage asks: some rows of a data set, or the next ones of a stream, which are then kept on disk."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset
from numpy.typing import NDArray

from trl_ext.generation.sample_files import read_table, write_table
from trl_ext.self_training.prompt_stream import Position, PromptStream, Row
from trl_ext.self_training.schedule import Schedule
from trl_ext.sequences.prompt_rows import read_dataset
from trl_ext.trainer_kit.fingerprints import data_fingerprint, stream_fingerprint
from trl_ext.trainer_kit.machines import seen
from trl_ext.trainer_kit.row_files import MixedColumn, mixtures_named

PROMPTS_NAME = re.compile(r"prompts-\d{3,}\.parquet")
AFTER = b"stream"  # of such a file's metadata: the stream's position behind its rows
AHEAD = 32  # rows of a stream that are looked at before the run
Check = Callable[[Dataset], None]


class StageRows(NamedTuple):
    """What a stage asks: rows of a data set, by their numbers, which its samples have as `row`."""

    dataset: Dataset
    rows: NDArray[np.integer]


class SetPrompts:
    """Those of a data set, shuffled, b a stage.

    Args:
        dataset: Once it is known to have prompts.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = self.known = dataset
        self.count = len(dataset)

    def fingerprint(self) -> str | None:
        return data_fingerprint(self.dataset)

    def prepare(self, stage: int, folder: Path, check: Check) -> None:
        """Nothing is to be done."""

    def of(self, stage: int, folder: Path, schedule: Schedule) -> StageRows:
        return StageRows(self.dataset, schedule.stage_rows(stage))


class StreamPrompts:
    """Those of a stream, b a stage, as they come. Each stage's are a file, from which all processes read them.

    prompts-000.parquet    all columns, and in the metadata how far the stream was read

    A run that is killed goes on with what is there, and behind it where the stream was.

    Args:
        stream: As given.
        count: b.
        trainer: Who was given it, for messages.
        completions: Whether a column `completion` is read.
    """

    def __init__(self, stream: IterableDataset, *, count: int | None, trainer: str, completions: bool):
        self.dataset, self._trainer, self._completions = stream, trainer, completions
        self._call = f"{trainer}(train_dataset=…)"
        self._check_given(count)
        self.count, self._stream = count, PromptStream(stream, call=self._call)
        first = self._stream.first(min(count, AHEAD))
        if not first:
            raise ValueError(f"{self._call} is empty: expected at least one prompt.")
        self.known = self._as_dataset(first)
        self._fingerprint = stream_fingerprint(first[0])

    def fingerprint(self) -> str | None:
        return self._fingerprint

    def prepare(self, stage: int, folder: Path, check: Check) -> None:
        """Take the stage's prompts from the stream, unless they are there; a ValueError for what is no prompt."""
        path = prompts_file(folder, stage)
        if path.exists():
            return
        self._stream.seek(self._position_behind(stage - 1, folder) if stage else Position())
        begin = self._stream.position.taken
        rows = self._stream.take(self.count)
        try:
            dataset = self._as_dataset(rows)
            check(dataset)
        except ValueError as error:
            raise ValueError(f"{error} Row 0 is row {begin} of the stream.") from error
        table = dataset.with_format("arrow")[:]
        said = {AFTER: json.dumps(asdict(self._stream.position)).encode()}
        write_table(path, table.replace_schema_metadata(dataset.features.arrow_schema.metadata | said))

    def of(self, stage: int, folder: Path, schedule: Schedule) -> StageRows:
        dataset = Dataset(read_table(seen(prompts_file(folder, stage))))
        return StageRows(dataset, np.arange(len(dataset)))

    def _as_dataset(self, rows: list[Row]) -> Dataset:
        names = self.dataset.features or dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        try:
            with mixtures_named(columns):
                dataset = Dataset.from_dict(columns, features=self.dataset.features)
        except MixedColumn as error:
            raise ValueError(f"{self._call}: {error}. Give one kind in all rows.") from error
        return read_dataset(dataset, trainer=self._trainer, completions=self._completions)

    def _position_behind(self, stage: int, folder: Path) -> Position:
        path = prompts_file(folder, stage)
        if not path.exists():
            raise ValueError(
                f"{self._call}: {path.name!r}, which says how far the stream was read, is not in {str(folder)!r}. Copy it there "
                "with the run's Grows."
            )
        return Position(**json.loads(pq.read_schema(path).metadata[AFTER]))

    def _check_given(self, count: int | None) -> None:
        if count is None:
            raise ValueError(
                f"{self._call} is a stream, with stage_batch_size=None: where it ends is not known. Say how many prompts a "
                "stage takes: stage_batch_size=…"
            )
        if self.dataset._distributed is not None:
            raise ValueError(
                f"{self._call} is a process's part of a stream: expected the whole stream, from which the main process reads for "
                "all. Leave out split_dataset_by_node."
            )


def prompts_file(folder: Path, stage: int) -> Path:
    return folder / f"prompts-{stage:03d}.parquet"


def stage_prompts(
    dataset: Dataset | IterableDataset | None, *, count: int | None, trainer: str, completions: bool
) -> SetPrompts | StreamPrompts:
    """Those of a data set or stream that a trainer is given; a ValueError for what has none.

    Args:
        dataset, trainer: What was given to whom.
        count: Prompts a stage, if that was said.
        completions: Whether a column `completion` is read.
    """
    if isinstance(dataset, IterableDataset):
        return StreamPrompts(dataset, count=count, trainer=trainer, completions=completions)
    return SetPrompts(read_dataset(dataset, trainer=trainer, completions=completions))
