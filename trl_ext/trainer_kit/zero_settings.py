"""What DeepSpeed's own config may say beside a trainer's: what transformers does not compare by itself when it trains."""

from collections.abc import Set
from typing import TYPE_CHECKING, Any

import torch

from trl_ext.trainer_kit.refusals import UNTRIED, Refusal

if TYPE_CHECKING:
    from transformers import Trainer

TOLD = {"lr", "betas", "eps", "weight_decay"}  # of the trainer's config, to DeepSpeed's AdamW
ADAMW = ("adamw_torch", "adamw_torch_fused")  # of transformers, which DeepSpeed's AdamW is, too
HALVES = (torch.bfloat16, torch.float16)


def of_deepspeed(trainer: "Trainer", *, own_optimizer: str | None = None) -> list[Refusal]:
    """What would be obeyed in the place of the trainer's config, what would be dropped, and what would save nothing.

    Args:
        trainer: With its accelerator.
        own_optimizer: Why no optimizer of DeepSpeed's config will do; None: its AdamW will, where it is the trainer's.
    """
    args, told = trainer.args, trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    config, clipped = type(args).__name__, told.get("gradient_clipping") or 0.0
    return [
        *_of_steps(trainer, told, own_optimizer),
        (
            clipped not in ("auto", args.max_grad_norm or 0.0),
            f"{f'gradient_clipping={clipped}' if clipped else 'no gradient_clipping'} in its config, and "
            f"{config}(max_grad_norm={args.max_grad_norm})",
            "the former would be obeyed",
            "Set gradient_clipping to auto",
        ),
        (
            told["zero_optimization"].get("stage") == 3
            and not told["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save"),
            "zero3_save_16bit_model=false",
            "save_model would write no weights",
            "Set it to true",
        ),
    ]


def of_one_dtype(
    trainer: "Trainer", *, beside: Set[torch.dtype] = frozenset(), why: str = "it takes one dtype"
) -> Refusal:
    """What it cannot train together with tensors in 16 bits, unless it casts all to bfloat16.

    Args:
        trainer: With its model.
        beside: Dtypes of what else will be trained.
        why: It cannot.
    """
    trained = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    return (
        len(trained | beside) > 1 and not trained.isdisjoint(HALVES) and not trainer.args.bf16,
        f"bf16=False and trained tensors in {', '.join(sorted(map(str, trained)))}",
        why,
        "Set bf16=True, or load the model in float32",
    )


def untried(trainer: "Trainer") -> list[Refusal]:
    """What nobody has run."""
    plugin, args = trainer.accelerator.state.deepspeed_plugin, trainer.args
    told, out = plugin.deepspeed_config, "Leave it out"
    return [
        (plugin.hf_ds_config.is_offload(), "offloading", UNTRIED, out),
        (bool(args.fp16), "fp16=True", UNTRIED, "Set bf16=True"),
        (told.get("torch_autocast", {}).get("enabled", False), "`torch_autocast` in its config", UNTRIED, out),
        (told.get("tensor_parallel", {}).get("autotp_size", 0) > 1, "`tensor_parallel` in its config", UNTRIED, out),
    ]


def _of_steps(trainer: "Trainer", told: dict[str, Any], own_optimizer: str | None) -> list[Refusal]:
    """Who may step, and at which rate."""
    args, config = trainer.args, type(trainer.args).__name__
    place = "it would be obeyed in the place of "
    return [
        (
            "optimizer" in told and (own_optimizer is not None or not _is_own(told["optimizer"], trainer)),
            "an `optimizer` in its config",
            own_optimizer or f"{place}optim={args.optim.value!r}, weight_decay={args.weight_decay:g}",
            f"Leave it out: {config}(optim=…) says it",
        ),
        (
            "scheduler" in told,
            "a `scheduler` in its config",
            own_optimizer or f"{place}lr_scheduler_type={args.lr_scheduler_type.value!r}",
            f"Leave it out: {config}(lr_scheduler_type=…) says it",
        ),
        (
            trainer.optimizer is not None or trainer.lr_scheduler is not None,
            "optimizers=…",
            "transformers makes its own in their place",
            f"Leave it out: {config}(optim=…, lr_scheduler_type=…) says it",
        ),
    ]


def _is_own(optimizer: dict[str, Any], trainer: "Trainer") -> bool:
    """Whether DeepSpeed's optimizer does what the trainer's would.

    Numbers that it is told transformers compares, or fills in for "auto"; where it is told less they are DeepSpeed's own, and
    more makes another optimizer of it (`amsgrad`). It decays all weights, norms and biases, too, which the trainer's spares.
    """
    args, told = trainer.args, optimizer.get("params", {}).keys()
    plain = args.optim in ADAMW and not args.weight_decay and trainer.optimizer_cls_and_kwargs is None
    return plain and optimizer.get("type", "").lower() == "adamw" and told - {"torch_adam"} == TOLD
