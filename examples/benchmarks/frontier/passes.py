"""What a run costs, in token passes: one token forward through a model of the policy's size; training it is three.

Sampling, the proxy's scoring, reference, the sampler's log-probabilities and training are counted, of prompts and
completions; looks at held-out questions, and the training of SFT and proxy, which all share, are not.
"""

from pathlib import Path

from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.grow_summary import grow_cost

SAMPLED_AND_SCORED = 2
TRAINED = 3
DPO = TRAINED + 1  # and the reference, on both sides of a pair


def online(epochs: int, *, before: bool) -> int:
    """Passes per sampled token of PPO, GRPO, RLOO: sampling, scoring, reference, log-probabilities before, training.

    >>> online(4, before=True)  # PPO
    16
    """
    return SAMPLED_AND_SCORED + 1 + before + TRAINED * epochs


def scored_in_grows(folder: Path) -> int:
    """Tokens that the reward model of RAFT or ReST has read, prompts and completions: what `StageTable.cost` leaves out."""
    grows = [GrowFiles(folder, stage) for stage in range(len(list(folder.glob("grow-*.parquet"))))]
    name = TransformersGenerator.name
    return sum(grow_cost(files, name, passes=1) - grow_cost(files, name, passes=0) for files in grows)
