"""TRL's log-probabilities on a CPU, where the tiles of the vocabulary that suit a GPU are slow."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from trl.trainer import utils

from trl_ext.trainer_kit.overrides import replaced

CPU_TILE = 512  # words, so that n tokens' logits of a tile, n · 2 KiB, stay near the cache; TRL 1.16 takes 32 768
TILE = "_CHUNKED_LOGPROB_CHUNK_SIZE"  # of trl.trainer.utils, read when a pass begins; TRL below 1.15 has none there


@contextmanager
def tiles_for(device: torch.device) -> Iterator[None]:
    """On a CPU, let TRL's fused vocabulary head take narrow tiles inside the block, and its own again after it.

    The same numbers to rounding: only the order of the sums over words changes. A pass remembers its tiles, so that its
    backward may come after the block. On other devices, and where TRL has no such tiles, nothing is changed.

    Args:
        device: Where the policy is.
    """
    changes = {TILE: CPU_TILE} if device.type == "cpu" and hasattr(utils, TILE) else {}
    with replaced(utils, **changes):
        yield
