"""Lets accelerate take FSDP2 for CPU processes (gloo): of itself it falls back to data parallelism there."""

import faulthandler
import os

from accelerate.state import PartialState
from accelerate.utils import DistributedType

FSDP2 = {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}  # what `accelerate launch` says by examples/accelerate/fsdp2.yaml


def shard_on_cpu(*, patience: float = 240, **changes: str) -> None:
    """Before the first trainer of a process that is one of several.

    Args:
        patience: Seconds after which all threads' stacks are printed and the process ends.
        changes: Of `FSDP2`.
    """
    faulthandler.dump_traceback_later(patience, exit=True)
    os.environ.update(FSDP2 | changes)
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
