"""Whether a disk has room for what will be saved, asked before hours of work and not after."""

import errno
import shutil
from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers import TrainingArguments

GIB = 2**30


def check_free_disk(folder: Path, needed: int, *, call: str) -> None:
    """Raise an OSError (ENOSPC) if a folder's disk has less room.

    Args:
        folder: It need not exist.
        needed: Bytes.
        call: For the message.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{call}: what is saved takes at least {needed / GIB:.2f} GiB, and the disk has {free / GIB:.2f} GiB free. Make "
            "room, or save to another disk",
        )


def checkpoint_bytes(model: nn.Module, args: TrainingArguments) -> int:
    """At least what a checkpoint takes: of an adapter its own weights, else all, and AdamW's two moments of what is trained."""
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    weights = trained if isinstance(model, PeftModel) else sum(p.nbytes for p in model.parameters())
    has_moments = not args.save_only_model and args.optim in ("adamw_torch", "adamw_torch_fused")
    return weights + (2 * trained if has_moments else 0)
