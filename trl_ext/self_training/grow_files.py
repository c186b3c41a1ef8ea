"""The files of one Grow: parts while it runs, one parquet file when it is done. Each is complete or absent.

grow-000/sampled-00003.parquet    a part's samples, before they are scored
grow-000/scored-00003.parquet     the same with scores and log-probabilities
grow-000.parquet                  all of them, with the ranking key and what was kept
"""

from dataclasses import dataclass
from pathlib import Path

from trl_ext.generation.sample_files import SampleFiles


@dataclass(frozen=True, init=False)
class GrowFiles(SampleFiles):
    """Where one Grow is on disk.

    Args:
        output_dir: The run's folder.
        stage: Number of the Grow, from 0.
    """

    def __init__(self, output_dir: Path, stage: int):
        super().__init__(output_dir / f"grow-{stage:03d}.parquet")
