"""The data set of an Improve: rows that it sets, in an order that is fixed for the whole of it."""

from torch.utils.data import Dataset

from trl_ext.sequences.samples import Sample
from trl_ext.sequences.training_rows import TrainingRow, training_row


def kept_row(sample: Sample, *, importance: bool) -> TrainingRow:
    """What an Improve learns from a sample: its tokens as they were sampled, and for RAFT++ their log-probabilities."""
    row = training_row(sample["prompt_ids"], sample["completion_ids"])
    return row | {"old_log_probs": sample["log_probs"]} if importance else row


class ImproveRows(Dataset):
    """A data set of fixed length whose rows each Improve sets; a place reads one of them.

    Args:
        length: Rows per Improve, over all processes and steps.
        placeholder: What it holds before the first Grow.
    """

    def __init__(self, length: int, placeholder: TrainingRow):
        self.rows, self.order = [placeholder], [0] * length

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> TrainingRow:
        return self.rows[self.order[place]]

    def set_rows(self, rows: list[TrainingRow], order: list[int]) -> None:
        if len(order) != len(self.order):
            raise ValueError(f"ImproveRows: expected an order of {len(self.order)} places, got {len(order)}.")
        self.rows, self.order = rows, order

    def tokens(self, places: range) -> int:
        """Tokens in some places."""
        return sum(len(self[place]["input_ids"]) for place in places)
