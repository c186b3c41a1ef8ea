"""Where models run: by default, and where a user says."""

import os

import torch


def default_device() -> torch.device:
    """This process's accelerator, or the CPU where there is none."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0))) if accelerator else torch.device("cpu")


def checked_device(device: str | torch.device, *, call: str) -> torch.device:
    """A device that is there.

    Raises:
        ValueError: For what names no device, or one that this machine does not have; `call` says where it was given.
    """
    try:
        named = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{call}: expected a device such as 'cpu', 'cuda' or 'cuda:1'. Check the spelling."
        ) from error
    here = torch.accelerator.current_accelerator(check_available=True)
    if named.type != "cpu" and (here is None or here.type != named.type):
        raise ValueError(
            f"{call}: no {named.type.upper()} device is available here. Give 'cpu'{'' if here is None else f' or {here.type!r}'}."
        )
    count = 1 if named.type == "cpu" else torch.accelerator.device_count()
    if (named.index or 0) >= count:
        raise ValueError(f"{call}: expected one of {count}, counted from 0. Give {named.type!r} or a lower number.")
    return named


def checked_dtype(dtype: str | torch.dtype, *, call: str) -> torch.dtype:
    """A floating-point dtype, by itself or by its name; a ValueError for anything else.

    >>> checked_dtype("bfloat16", call="")
    torch.bfloat16
    """
    found = vars(torch).get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(
            f"{call}: expected a floating-point dtype such as 'float32' or 'bfloat16'. Give one of these."
        )
    return found
