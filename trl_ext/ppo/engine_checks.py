"""Which engines PPO trains under: one process, data parallelism, and FSDP2, with the critic inside the policy."""

from typing import TYPE_CHECKING

from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import Trainer

from trl_ext.trainer_kit.sharding import DDP, engine_of, refuse_engine

if TYPE_CHECKING:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from trl import GRPOTrainer

REFUSAL = {
    "trainer": "PPOTrainer",
    "runs": "on one device, with data parallelism or under FSDP2",
    "why": "its critic is inside the model that FSDP2 shards, and outside for the other engines",
    "instead": f"Launch it with `accelerate launch --config_file examples/accelerate/fsdp2.yaml`, or without. {DDP}",
}


def shards_policy(trainer: "GRPOTrainer") -> bool:
    """Whether FSDP2 shards what is trained; a ValueError for other engines, and for what is not to be had under FSDP2."""
    engine = engine_of(trainer)
    if engine is None:
        return False
    if engine != "FSDP2":
        refuse_engine(engine, **REFUSAL)
    plugin = trainer.accelerator.state.fsdp_plugin
    for is_so, came, why, instead in (*_of_plugin(plugin), *_of_trainer(trainer)):
        if is_so:
            raise ValueError(f"PPOTrainer under FSDP2 with {came}: {why}. {instead}.")
    return True


def _of_plugin(plugin: "FullyShardedDataParallelPlugin") -> list[tuple[bool, str, str, str]]:
    """What accelerate's settings may be: whether each is so, what it is, why it is refused, and what to do."""
    return [
        (
            plugin.state_dict_type != StateDictType.FULL_STATE_DICT,
            f"fsdp_state_dict_type={plugin.state_dict_type.name}",
            "save_model would write no weights",
            "Set it to FULL_STATE_DICT",
        ),
        (
            plugin.auto_wrap_policy is not transformer_auto_wrap_policy,
            "another fsdp_auto_wrap_policy than TRANSFORMER_BASED_WRAP",
            "the critic would be in one unit with the policy, whole only while that runs",
            "Set it to TRANSFORMER_BASED_WRAP",
        ),
        (
            bool(plugin.cpu_ram_efficient_loading),
            "fsdp_cpu_ram_efficient_loading=true",
            "the reference is a copy of the policy that each process has read, and but one would have read it",
            "Set it to false",
        ),
        (
            getattr(plugin.cpu_offload, "pin_memory", None) is not None,
            "fsdp_offload_params=true",
            "it was never tried",
            "Set it to false",
        ),
        (
            bool(plugin.activation_checkpointing),
            "fsdp_activation_checkpointing=true",
            "it was never tried",
            "Set it to false, and PPOConfig(gradient_checkpointing=True)",
        ),
    ]


def _of_trainer(trainer: "GRPOTrainer") -> list[tuple[bool, str, str, str]]:
    """The same, of what the trainer is told."""
    args = trainer.args
    own = "Leave it out: the policy samples, all processes in step"
    return [
        (bool(args.use_vllm), "use_vllm=True", "TRL would send vLLM the critic's weights too", own),
        (
            bool(args.use_transformers_continuous_batching),
            "use_transformers_continuous_batching=True",
            "it samples with weights that are not whole",
            own,
        ),
        (bool(args.torch_compile), "torch_compile=True", "it was never tried", "Leave it out"),
        (
            trainer.model.config.to_dict().get("quantization_config") is not None,
            "a policy of 8 or 4 bits",
            "it was never tried",
            DDP,
        ),
        (
            not hasattr(Trainer, "_clip_grad_norm"),
            "this transformers",
            "it clips the critic's gradient with the policy's",
            "Upgrade transformers",
        ),
    ]
