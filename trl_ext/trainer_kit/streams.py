"""Data sets that come as streams, where Trainer reads them."""

from pathlib import Path

from datasets import IterableDataset
from transformers import TrainerState

from trl_ext.trainer_kit.checkpoint_files import TRAINER_STATE


def check_first_pass(dataset: object, checkpoint: str | None, *, call: str) -> None:
    """Raise a ValueError for a checkpoint of a run that had begun its stream anew.

    Trainer finds the place in the first pass alone: behind it, it would go on with other rows, and fewer.

    Args:
        dataset: What is trained on.
        checkpoint: To go on from, if there is one.
        call: Who goes on, for the message.
    """
    if checkpoint is None or not isinstance(dataset, IterableDataset):
        return
    passes = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE))).epoch
    if passes > 1:  # of a stream, the length of a pass is that of the run, until it ends
        raise ValueError(
            f"{call}: the stream had ended before {Path(checkpoint).name!r} was written, and was being read anew, where its "
            "place is not found again. Begin in another output_dir, with more rows or with stream.repeat(None), which never "
            "ends; or resume from a checkpoint of the first pass."
        )
