"""Which engine spreads a model's weights over processes: read from accelerate's own state, and refused by its name.

FSDP and DeepSpeed may be asked for by a trainer's config, by the file or flags of `accelerate launch`, or by an accelerator
that was made before; all of them end up in accelerate's state, but some trainers are built from whole weights before that
is there, which is why it is asked twice.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer

from trl_ext.trainer_kit.engine_words import DDP, engine_refusal

LAUNCHED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}  # what `accelerate launch` tells its processes by
TYPES = {
    DistributedType.DEEPSPEED: "DeepSpeed",
    DistributedType.FSDP: "FSDP",
    DistributedType.MEGATRON_LM: "Megatron-LM",
}
SHARDING = ("FSDP2", "DeepSpeed ZeRO-1", "DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3")  # what some trainers run under
CUTTING = ("FSDP2", "DeepSpeed ZeRO-3")  # of them those that leave no process whole weights


def engine_asked(args: Any = None) -> str | None:
    """What is to spread the weights, before a trainer has an accelerator; None: nothing.

    Args:
        args: A trainer's config, where there is one.
    """
    state = AcceleratorState._shared_state
    for name, engine in (("deepspeed", "DeepSpeed"), ("fsdp", "FSDP")):
        if args is not None and getattr(args, name):
            there = _engine_in(state) if state else None  # which knows its version or stage
            return there if there is not None and there.startswith(engine) else engine
    if state:
        return _engine_in(state)
    launched = [engine for name, engine in LAUNCHED.items() if os.environ.get(name, "").lower() == "true"]
    if launched == ["FSDP"]:
        return f"FSDP{os.environ.get('FSDP_VERSION', '1')}"
    return launched[0] if launched else None


def but_fsdp2(engine: str | None) -> str | None:
    """An engine, unless it is FSDP2, or FSDP of which nobody has said the version yet."""
    return but_for(engine, "FSDP2")


def but_for(engine: str | None, *runs: str) -> str | None:
    """An engine, unless it is one of some, or may be, where nobody has said its version or stage yet."""
    return None if engine is None or any(one.startswith(engine) for one in runs) else engine


def engine_of(trainer: Trainer) -> str | None:
    """What spreads the weights that a trainer trains, with its version or stage; None: nothing."""
    engine = _engine_in(trainer.accelerator.state._shared_state)
    asked = (("FSDP", trainer.is_fsdp_enabled), ("DeepSpeed", trainer.is_deepspeed_enabled))
    return engine or next((name for name, is_on in asked if is_on), None)


def _engine_in(state: dict[str, Any]) -> str | None:
    fsdp, deepspeed = state.get("fsdp_plugin"), state.get("deepspeed_plugins")
    parallel = state.get("parallelism_config")
    kinds = ["tp", "cp", "sp"] + (["dp_replicate"] if fsdp is not None else [])  # which alone is data parallel
    split = [kind for kind in kinds if parallel is not None and getattr(parallel, f"{kind}_enabled", False)]
    if split:  # also beside FSDP2 or DeepSpeed, which those need
        return f"accelerate's parallelism_config ({', '.join(split)})"
    if fsdp is not None:
        return f"FSDP{fsdp.fsdp_version}"
    if deepspeed:
        (plugin, *_) = deepspeed.values() if isinstance(deepspeed, dict) else [deepspeed]
        return f"DeepSpeed ZeRO-{plugin.zero_stage}"
    return TYPES.get(state.get("distributed_type"))


def refuse_engine(
    engine: str | None,
    *,
    trainer: str,
    why: str,
    runs: str = "on one device or with data parallelism",
    instead: str = DDP,
) -> None:
    """Raise a ValueError where an engine spreads the weights, which this trainer cannot work with.

    Args:
        engine: `engine_asked` or `engine_of`.
        trainer: Who refuses.
        why: What it needs that the engine takes away.
        runs: How it does run.
        instead: What to do, without the full stop.
    """
    if engine is not None:
        raise ValueError(engine_refusal(engine, trainer=trainer, why=why, runs=runs, instead=instead))


def check_prepared(trainer: Trainer, is_prepared: bool) -> None:
    """Raise a ValueError for an evaluation of what an engine is to cut, and has not yet."""
    if not is_prepared:
        raise ValueError(
            f"{type(trainer).__name__}.evaluate() or predict() under {engine_of(trainer)}, before train(): accelerate shards a model with its "
            "optimizer only. Set eval_on_start=True, or evaluate what is saved in one process."
        )


def check_untrained(trainer: Trainer, *, call: str) -> None:
    """Raise a ValueError for a training of what an engine has prepared before: it takes no second optimizer.

    accelerate looks for those that FSDP2 has cut by their addresses, of which some are whole by then, and some are 0.
    """
    is_cut = isinstance(trainer.model, FSDPModule)
    if is_cut or (trainer.is_deepspeed_enabled and trainer.deepspeed is not None):
        raise ValueError(
            f"{call} under {'FSDP2' if is_cut else 'DeepSpeed'}, after it has trained or evaluated: its engine takes no second "
            "optimizer. Make another trainer, from the saved weights or to go on from a checkpoint."
        )


def as_cut(model: nn.Module) -> nn.Module:
    """A model, each of whose parameters is the piece that is trained where FSDP2 cuts it.

    Behind a pass without a backward one, some are still whole: copies, in the precision of the passes, to which nothing may
    be written.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    return model


def is_in_pieces(tensor: Tensor) -> bool:
    """Whether ZeRO-3 has cut it, so that nothing may be in its place but for a pass."""
    return hasattr(tensor, "ds_tensor")


def own_part(tensor: Tensor) -> Tensor:
    """What of a tensor is in this process; all of one that nobody has cut."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return tensor.ds_tensor if is_in_pieces(tensor) else tensor


def whole_shape(tensor: Tensor) -> list[int]:
    """The shape of a tensor, cut or not, as a whole."""
    return list(tensor.ds_shape if is_in_pieces(tensor) else tensor.shape)


def check_uncut(model: object, *, call: str) -> None:
    """Raise a ValueError for a model that transformers has cut while it loaded it, as it does once ZeRO-3 is asked for.

    Args:
        model: As it was given; what is no module is passed over.
        call: In which call.
    """
    if isinstance(model, nn.Module) and any(map(is_in_pieces, model.parameters())):
        raise ValueError(
            f"{call}: DeepSpeed ZeRO-3 has cut it while it was loaded, since the trainer's config, or another trainer, had "
            "been made before. Give its path, or load it before the config is made."
        )


@contextmanager
def put_together(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside the block, parameters that ZeRO-3 has cut are whole, to be read; all processes must enter it."""
    cut = [parameter for parameter in parameters if is_in_pieces(parameter)]
    if not cut:
        yield
        return
    import deepspeed  # there, where it has cut them

    with deepspeed.zero.GatheredParameters(cut):
        yield


def whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP2 or ZeRO-3 has cut, put together; all processes must ask for it. Any other as it is."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if not is_in_pieces(tensor):
        return tensor
    with put_together([tensor]):
        return tensor.detach().clone()


@torch.no_grad()
def copy_whole(parameter: Tensor, values: Tensor) -> None:
    """Give a parameter, cut by FSDP2 or not, the values that it has as a whole; each process has all of them."""
    if isinstance(parameter, DTensor):
        values = values.to(parameter.device, parameter.dtype)
        values = distribute_tensor(values, parameter.device_mesh, parameter.placements)
    parameter.copy_(values)
