"""Which engines PPO trains under: one process, data parallelism, and FSDP2, with the critic inside the policy."""

from typing import TYPE_CHECKING

from transformers import Trainer

from trl_ext.trainer_kit.fsdp_settings import UNTRIED, Refusal, of_plugin, refuse_settings
from trl_ext.trainer_kit.sharding import DDP, engine_of, refuse_engine

if TYPE_CHECKING:
    from trl import GRPOTrainer

REFUSAL = {
    "trainer": "PPOTrainer",
    "runs": "on one device, with data parallelism or under FSDP2",
    "why": "its critic is inside the model that FSDP2 shards, and outside for the other engines",
    "instead": f"Launch it with `accelerate launch --config_file examples/accelerate/fsdp2.yaml`, or without. {DDP}",
}

SETTINGS = {
    "config": "PPOConfig",
    "unwrapped": "the critic would be in one unit with the policy, whole only while that runs",
    "read_by_one": "the reference is a copy of the policy that each process has read, and but one would have read it",
}


def shards_policy(trainer: "GRPOTrainer") -> bool:
    """Whether FSDP2 shards what is trained; a ValueError for other engines, and for what is not to be had under FSDP2."""
    engine = engine_of(trainer)
    if engine is None:
        return False
    if engine != "FSDP2":
        refuse_engine(engine, **REFUSAL)
    plugin = trainer.accelerator.state.fsdp_plugin
    refuse_settings([*of_plugin(plugin, **SETTINGS), *_of_trainer(trainer)], trainer="PPOTrainer")
    return True


def _of_trainer(trainer: "GRPOTrainer") -> list[Refusal]:
    """What the trainer may be told."""
    args = trainer.args
    own = "Leave it out: the policy samples, all processes in step"
    return [
        (
            args.use_vllm and args.vllm_mode != "server",
            f"vllm_mode={args.vllm_mode!r}",
            UNTRIED,
            "Set vllm_mode='server'",
        ),
        (
            bool(args.use_transformers_continuous_batching),
            "use_transformers_continuous_batching=True",
            "it samples with weights that are not whole",
            own,
        ),
        (bool(args.torch_compile), "torch_compile=True", UNTRIED, "Leave it out"),
        (
            trainer.model.config.to_dict().get("quantization_config") is not None,
            "a policy of 8 or 4 bits",
            UNTRIED,
            DDP,
        ),
        (
            not hasattr(Trainer, "_clip_grad_norm"),
            "this transformers",
            "it clips the critic's gradient with the policy's",
            "Upgrade transformers",
        ),
    ]
