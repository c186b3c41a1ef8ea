"""The stage table: what each Improve of a run did, its best held-out score, and what it has cost so far.

It is in every checkpoint, so that a resumed run stops where the other would have stopped and goes on from the weights
that the other would have gone on from.
"""

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trl_ext.trainer_kit.checkpoint_files import checkpoint_folders

TABLE = "stage_table.json"


@dataclass
class ImproveEntry:
    """One Improve.

    Args:
        improve, stage: Its number in the run, and its stage's.
        start_step: The run's step at which it began.
        kept: Number of samples it learns from.
        passes: How often it reads each of them.
        stopped_at: The step after which the held-out score had not risen for `improve_patience` evaluations.
        best_score, best_step: Of the held-out evaluations inside it.
        evaluations_since: How many since the best.
    """

    improve: int
    stage: int
    start_step: int
    kept: int
    passes: float
    stopped_at: int | None = None
    best_score: float | None = None
    best_step: int | None = None
    evaluations_since: int = 0

    def evaluated(self, score: float, step: int) -> bool:
        """Take note of a held-out score; True if it is the best of this Improve."""
        if not score > (-math.inf if self.best_score is None else self.best_score):  # NaN is none
            self.evaluations_since += 1
            return False
        self.best_score, self.best_step, self.evaluations_since = score, step, 0
        return True


@dataclass
class StageTable:
    """All Improves so far, and the cost of the run.

    Args:
        improves: In their order.
        cost: Tokens passed forward + 2 × tokens passed backward, over all processes.
    """

    improves: list[ImproveEntry] = field(default_factory=list)
    cost: int = 0

    def save(self, folder: str | Path) -> None:
        (Path(folder) / TABLE).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    def clear(self) -> None:
        self.improves, self.cost = [], 0

    def load(self, folder: str | Path) -> None:
        """Become the table of a checkpoint; a ValueError if there is none, as in another trainer's."""
        path = Path(folder) / TABLE
        if not path.is_file():
            raise ValueError(
                f"train(resume_from_checkpoint={str(folder)!r}): there is no {TABLE} in it, so it is not a checkpoint "
                "of RAFT or ReST. To start from its weights, load them as the model."
            )
        table = json.loads(path.read_text(encoding="utf-8"))
        self.improves, self.cost = [ImproveEntry(**entry) for entry in table["improves"]], table["cost"]


def saved_tables(output_dir: str | Path) -> list[StageTable]:
    """The tables of a run's checkpoints, as far as they can be read."""
    tables = []
    for folder in checkpoint_folders(output_dir):
        with suppress(ValueError):  # there is none, or half of one
            table = StageTable()
            table.load(folder)
            tables.append(table)
    return tables
