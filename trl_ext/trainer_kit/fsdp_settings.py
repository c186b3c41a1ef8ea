"""What a model under an engine, and accelerate's settings of FSDP2, may be: those of examples/accelerate/fsdp2.yaml."""

from dataclasses import replace
from typing import TYPE_CHECKING

from peft import PeftModel
from torch.distributed.fsdp import FSDPModule, StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.optim import SGD
from transformers import PreTrainedModel

from trl_ext.trainer_kit.cut_checks import check_may_be_cut
from trl_ext.trainer_kit.refusals import UNTRIED, Refusal
from trl_ext.trainer_kit.sharding import DDP

if TYPE_CHECKING:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers import Trainer


def of_model(trainer: "Trainer") -> list[Refusal]:
    """What a model that an engine is to cut, and what steps it, may not be; a ValueError of its own of one whose maker knows why."""
    check_may_be_cut(trainer.model)
    return [
        *([_of_resuming(trainer)] if trainer.is_fsdp_enabled else []),
        (bool(trainer.args.torch_compile), "torch_compile=True", UNTRIED, "Leave it out"),
        (
            trainer.model.config.to_dict().get("quantization_config") is not None,
            "a model of 8 or 4 bits",
            UNTRIED,
            DDP,
        ),
    ]


def _of_resuming(trainer: "Trainer") -> Refusal:
    """What saves checkpoints that FSDP2 cannot load."""
    args, given = trainer.args, trainer.optimizer_cls_and_kwargs
    kind, settings = given or (trainer.get_optimizer_cls_and_kwargs(args) if args.optim == "sgd" else (None, {}))
    saves = args.save_strategy != "no" and not args.save_only_model
    return (
        saves and kind is SGD and not settings.get("momentum"),
        f"SGD without momentum and save_strategy={args.save_strategy.value!r}",
        "torch loads no optimizer that keeps nothing of its steps, so that no run could go on from a checkpoint",
        "Set optim_args='momentum=0.9', another optim, or save_strategy='no'",
    )


def keep_outputs(plugin: "FullyShardedDataParallelPlugin") -> None:
    """Let log-probabilities and values stay in the precision that they are computed in.

    Under bf16 accelerate has FSDP2 round all that a model returns to 8 bits: a log-probability of −5 to a 1/32, a ratio by 1.5 %.
    """
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)


def of_saving(plugin: "FullyShardedDataParallelPlugin") -> Refusal:
    """What would save nothing."""
    return (
        plugin.state_dict_type != StateDictType.FULL_STATE_DICT,
        f"fsdp_state_dict_type={plugin.state_dict_type.name}",
        "save_model would write no weights",
        "Set it to FULL_STATE_DICT",
    )


def gather_head(policy: PreTrainedModel | PeftModel) -> None:
    """Let a trained vocabulary head be whole in every pass of the policy, also where TRL reads its weights without calling it.

    FSDP2 gathers a head, and sums its gradient over processes, beside the last norm; of some models, and under an adapter
    (`modules_to_save`), accelerate finds none, and each process would train its piece of the head on its own rows alone.
    """

    def gather(*_) -> None:
        head = policy.get_output_embeddings()
        if isinstance(head, FSDPModule) and any(parameter.requires_grad for parameter in head.parameters()):
            head.unshard()

    policy.register_forward_pre_hook(gather)


def of_plugin(
    plugin: "FullyShardedDataParallelPlugin",
    *,
    config: str,
    unwrapped: str = UNTRIED,
    read_by_one: str = UNTRIED,
    kept_whole: str | None = UNTRIED,
) -> list[Refusal]:
    """What accelerate's settings may be.

    Args:
        plugin: Of accelerate's state.
        config: The trainer's.
        unwrapped, read_by_one: Why the policy must be wrapped by its layers, and read by each process.
        kept_whole: Why layers may not stay whole between passes; None: they may.
    """
    return [
        of_saving(plugin),
        (
            kept_whole is not None and not plugin.reshard_after_forward,
            "fsdp_reshard_after_forward=false",
            kept_whole,
            "Set it to true",
        ),
        (
            plugin.auto_wrap_policy is not transformer_auto_wrap_policy,
            "another fsdp_auto_wrap_policy than TRANSFORMER_BASED_WRAP",
            unwrapped,
            "Set it to TRANSFORMER_BASED_WRAP",
        ),
        (
            bool(plugin.cpu_ram_efficient_loading),
            "fsdp_cpu_ram_efficient_loading=true",
            read_by_one,
            "Set it to false",
        ),
        (
            getattr(plugin.cpu_offload, "pin_memory", None) is not None,
            "fsdp_offload_params=true",
            UNTRIED,
            "Set it to false",
        ),
        (
            bool(plugin.activation_checkpointing),
            "fsdp_activation_checkpointing=true",
            UNTRIED,
            f"Set it to false, and {config}(gradient_checkpointing=True)",
        ),
    ]
