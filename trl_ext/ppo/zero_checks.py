"""What PPO refuses under DeepSpeed, which clips and steps inside the backward pass, all that it shards at once."""

import warnings
from typing import TYPE_CHECKING

import torch

from trl_ext.trainer_kit.refusals import UNTRIED, Refusal

if TYPE_CHECKING:
    from accelerate.utils import DeepSpeedPlugin
    from trl import GRPOTrainer

    from trl_ext.ppo.ppo_config import PPOConfig

HALVES = (torch.bfloat16, torch.float16)


def of_zero(trainer: "GRPOTrainer") -> list[Refusal]:
    """What accelerate's settings, and the trainer's, may be."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    return [*_of_plugin(plugin, trainer.args), *_of_steps(trainer)]


def _of_plugin(plugin: "DeepSpeedPlugin", args: "PPOConfig") -> list[Refusal]:
    told, own = plugin.deepspeed_config, "the critic would be trained at the policy's rate"
    clipped = told.get("gradient_clipping", 0.0)
    return [
        ("optimizer" in told, "an `optimizer` in its config", own, "Leave it out: PPOConfig(optim=…) says it"),
        (
            "scheduler" in told,
            "a `scheduler` in its config",
            own,
            "Leave it out: PPOConfig(lr_scheduler_type=…) says it",
        ),
        (
            clipped not in ("auto", args.max_grad_norm or 0.0),
            f"gradient_clipping={clipped} in its config, and PPOConfig(max_grad_norm={args.max_grad_norm})",
            "the former would be obeyed",
            "Set gradient_clipping to auto",
        ),
        (plugin.hf_ds_config.is_offload(), "offloading", UNTRIED, "Leave it out"),
        (bool(args.fp16), "fp16=True", UNTRIED, "Set bf16=True"),
        (
            plugin.zero_stage == 3 and not told["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save"),
            "zero3_save_16bit_model=false",
            "save_model would write no weights",
            "Set it to true",
        ),
    ]


def _of_steps(trainer: "GRPOTrainer") -> list[Refusal]:
    args, stage = trainer.args, trainer.accelerator.state.deepspeed_plugin.zero_stage
    halves = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad} & set(HALVES)
    return [
        (
            stage == 3 and not args.bf16 and bool(halves),
            f"bf16=False and trained tensors in {', '.join(sorted(map(str, halves)))}",
            "it takes one dtype, and the critic is in float32",
            "Set bf16=True, or load the policy in float32",
        ),
        (
            args.critic_warmup_rollouts > 0,
            f"critic_warmup_rollouts={args.critic_warmup_rollouts}",
            "it steps before the policy can be told to rest",
            "Set it to 0, or warm up in one process or under FSDP2, and go on with value_model=… and the saved value model",
        ),
        (
            trainer.optimizer is not None,
            "optimizers=…",
            "transformers makes its own in their place",
            "Leave it out: PPOConfig(optim=…) says it",
        ),
    ]


def say_how_it_clips(trainer: "GRPOTrainer", engine: str) -> None:
    """Warn, once for all processes, that a norm that is asked for is of policy and critic together."""
    limit = trainer.args.max_grad_norm
    if limit and limit > 0 and trainer.accelerator.is_main_process:
        warnings.warn(
            f"PPOTrainer under {engine}: max_grad_norm={limit:g} clips policy and critic by one norm, of both, which is also "
            "what is logged as grad_norm; elsewhere each is clipped by its own. max_grad_norm=0 clips nothing.",
            stacklevel=3,
        )
