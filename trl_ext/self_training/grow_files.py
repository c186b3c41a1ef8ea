"""The files of one Grow: parts while it runs, one parquet file when it is done. Each is complete or absent.

grow-000/sampled-00003.parquet    a part's samples, before they are scored
grow-000/scored-00003.parquet     the same with scores and log-probabilities
grow-000.parquet                  all of them, with the ranking key and what was kept
grow-000/kept-0.arrow             tokens of what an Improve learns from, while the processes map it
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trl_ext.generation.sample_files import SampleFiles
from trl_ext.self_training.stage_selection import Scored, Selected
from trl_ext.trainer_kit.whole_files import written_whole

GROW_NAME = re.compile(r"grow-\d{3,}")
DROPPED = b"dropped"  # of a finished file's metadata: how many samples were left out before ranking, by reason


def write_batches(file: pa.NativeFile, batches: Iterator[pa.RecordBatch]) -> None:
    """Write batches, at least one, in Arrow's format for files."""
    first = next(batches)
    with pa.ipc.new_file(file, first.schema) as writer:
        for batch in chain([first], batches):
            writer.write_batch(batch)


@dataclass(frozen=True, init=False)
class GrowFiles(SampleFiles):
    """Where one Grow is on disk.

    Args:
        output_dir: The run's folder.
        stage: Number of the Grow, from 0.
    """

    def __init__(self, output_dir: Path, stage: int):
        super().__init__(output_dir / f"grow-{stage:03d}.parquet")

    # While it runs

    def selection_columns(self, parts: int) -> Scored:
        """What selection reads, of all scored parts; a few bytes per sample."""
        names, there = ["row", "score", "ended", "duplicate"], pq.ParquetFile(self.scored(0)).schema_arrow.names
        table = self.column(parts, [*names, "kl"] if "kl" in there else names)
        prompts, scores, ended, duplicate, *kl = (column.to_numpy() for column in table.columns)
        return Scored(prompts, scores.astype(float), ended, duplicate, *kl)

    def finish_selected(self, parts: int, selected: Selected) -> None:
        """Join the parts, with the ranking key and in how many Improves a sample is kept."""
        keys = pa.array(selected.keys, pa.float64(), mask=np.isnan(selected.keys))
        columns = {"key": keys, "kept": pa.array(selected.kept, pa.int32())}
        self.finish(parts, columns, metadata={DROPPED: json.dumps(selected.dropped).encode()})

    # Once it is finished

    def batches(self, columns: list[str] | None = None, *, size: int = 2**13) -> Iterator[pa.RecordBatch]:
        """The finished file's rows, so many at a time; a ValueError if it is damaged."""
        try:
            yield from pq.ParquetFile(self.finished).iter_batches(size, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{self.finished} cannot be read ({str(error).splitlines()[0]}): it was changed or taken away after it "
                "was written. Restore it; or begin anew in another output_dir, where FileGenerator takes the Grows that "
                "are whole."
            ) from error

    def table(self, columns: list[str]) -> pa.Table:
        return pa.Table.from_batches(self.batches(columns))

    def kept(self, improve: int) -> Path:
        return self.parts / f"kept-{improve}.arrow"

    def write_kept(self, improve: int, *, importance: bool) -> None:
        """Write the tokens that a stage's Improve learns from, and for RAFT++ the samples' log-probabilities."""
        names = ["prompt_ids", "completion_ids", *(["log_probs"] if importance else [])]
        with written_whole(self.kept(improve), lasting=False) as partial, pa.OSFile(str(partial), "wb") as file:
            kept = (batch.filter(pc.greater(batch["kept"], improve)) for batch in self.batches([*names, "kept"]))
            write_batches(file, (batch.select(names) for batch in kept))

    def dropped(self) -> dict[str, int]:
        """How many samples were left out before ranking, each by the first reason that it met."""
        return json.loads((pq.read_schema(self.finished).metadata or {}).get(DROPPED, b"{}"))
