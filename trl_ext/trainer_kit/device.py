"""Where reward models and encoders run unless told otherwise."""

import os

import torch


def default_device() -> torch.device:
    """This process's accelerator, or the CPU where there is none."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0))) if accelerator else torch.device("cpu")
