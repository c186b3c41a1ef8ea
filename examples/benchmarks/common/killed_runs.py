"""What is looked at in runs of RAFT and ReST that are killed and resumed: which parts were sampled, what they end with."""

import hashlib
from pathlib import Path

from trl_ext import TransformersGenerator

SAMPLED_LOG = "sampled.log"


class LoggedGenerator(TransformersGenerator):
    """Writes down each part that it samples."""

    def __init__(self, log: Path):
        super().__init__()
        self.log = log

    def generate(self, parts, sampling, policy):
        for part, samples in super().generate(parts, sampling, policy):
            with self.log.open("a") as file:
                file.write(f"{sampling.seed} {part.index}\n")
            yield part, samples


def digest(folder: Path) -> dict[str, str]:
    """Hashes of the final weights and of every Grow."""
    files = [*folder.glob("final/*.safetensors"), *(folder / "run").glob("grow-*")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}
