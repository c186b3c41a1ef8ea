"""The data set of an Improve: rows that it sets, in an order that is fixed for the whole of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset

from trl_ext.sequences.training_rows import TrainingRow, training_row


class KeptRows(Sequence[TrainingRow]):
    """What an Improve learns from: of each kept sample its tokens as they were sampled, and for RAFT++ their log-probabilities.

    They stay in the file, which is mapped into memory: 4 bytes a token and about 10 a row, once for all processes of a machine.

    Args:
        path: As `GrowFiles.write_kept` wrote it. It may be removed once it is open, but for a drive that other
            machines share: that takes it from them, too.
    """

    def __init__(self, path: Path):
        self.columns = pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, place: int) -> TrainingRow:
        prompt_ids, completion_ids, *log_probs = (
            column[place].values.to_numpy().tolist() for column in self.columns.columns
        )
        row = training_row(prompt_ids, completion_ids)
        return row | {"old_log_probs": log_probs[0]} if log_probs else row


class ImproveRows(Dataset):
    """A data set of fixed length whose rows each Improve sets; a place reads one of them.

    Args:
        length: Rows per Improve, over all processes and steps.
        placeholder: What it holds before the first Grow.
    """

    def __init__(self, length: int, placeholder: TrainingRow):
        self.placeholder, self.length = placeholder, length
        self.release()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> TrainingRow:
        return self.rows[int(self.order[place])]

    def set_rows(self, rows: Sequence[TrainingRow], order: Sequence[int]) -> None:
        if len(order) != self.length:
            raise ValueError(f"ImproveRows: expected an order of {self.length} places, got {len(order)}.")
        self.rows, self.order = rows, np.asarray(order, np.int32)

    def release(self) -> None:
        """Hold the placeholder again, and no file."""
        self.rows, self.order = [self.placeholder], np.zeros(self.length, np.int32)

    def tokens(self, places: range) -> int:
        """Tokens in some places."""
        return sum(len(self[place]["input_ids"]) for place in places)
