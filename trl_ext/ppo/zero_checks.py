"""What PPO refuses under DeepSpeed, which clips and steps inside the backward pass, all that it shards at once."""

import warnings
from typing import TYPE_CHECKING

import torch

from trl_ext.trainer_kit.refusals import Refusal
from trl_ext.trainer_kit.zero_settings import of_deepspeed, of_one_dtype, untried

if TYPE_CHECKING:
    from trl import GRPOTrainer


def of_zero(trainer: "GRPOTrainer") -> list[Refusal]:
    """What accelerate's settings, and the trainer's, may be."""
    own = "the critic would be trained at the policy's rate"
    return [*of_deepspeed(trainer, own_optimizer=own), *untried(trainer), *_of_steps(trainer)]


def _of_steps(trainer: "GRPOTrainer") -> list[Refusal]:
    args, stage = trainer.args, trainer.accelerator.state.deepspeed_plugin.zero_stage
    own = torch.get_default_dtype()  # a new head's
    why = f"it takes one dtype, and the critic is in {str(own).removeprefix('torch.')}"
    return [
        *([of_one_dtype(trainer, beside={own}, why=why)] if stage == 3 else []),
        (
            args.critic_warmup_rollouts > 0,
            f"critic_warmup_rollouts={args.critic_warmup_rollouts}",
            "it steps before the policy can be told to rest",
            "Set it to 0, or warm up in one process or under FSDP2, and go on with value_model=… and the saved value model",
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
