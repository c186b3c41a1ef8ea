"""CPU processes (gloo) that stand in for cards, as `accelerate launch` begins them."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

ROOT = Path(__file__).resolve().parents[3]


def launch_command(engine: str, module: str) -> list[str]:
    """What launches a module by examples/accelerate/ENGINE.yaml; its own arguments follow."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port=0", "--config_file"]
    return [*launch, str(ROOT / f"examples/accelerate/{engine}.yaml"), "-m", module]


def take_for_cards() -> None:
    """Let accelerate shard over CPU processes as it does over cards."""
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def leave() -> NoReturn:
    """End when all are done; gloo's threads may abort a process that ends slowly."""
    sys.stdout.flush()
    torch.distributed.barrier()
    os._exit(0)
