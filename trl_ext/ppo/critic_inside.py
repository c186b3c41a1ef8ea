"""The critic as a part of the policy, so that FSDP2 or DeepSpeed, which shard one model, shard both.

FSDP2 lets a part run by itself only after the whole has run once: the policy's pass comes first, in training, in evaluation
and after a resume, which `values_beside` sees to.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel

from trl_ext.trainer_kit.sharding import as_cut

if TYPE_CHECKING:
    from trl.generation.vllm_generation import VLLMGeneration

INSIDE = "ppo_critic"  # its name there


class PolicyAlone:
    """A policy without the critic inside: what a step clips, and what rests in the critic's warm-up.

    Args:
        model: The policy, with a critic inside.
    """

    def __init__(self, model: nn.Module):
        self._model = model

    def parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for name, parameter in self._model.named_parameters() if not is_critics(name))

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None


def put_inside(critic: nn.Module, policy: PreTrainedModel, accelerator: Accelerator) -> None:
    """Make a critic a part of the policy, and a unit of its own where FSDP2 shards it.

    Of one unit with the rest of the policy it would be whole only while that runs.
    """
    policy.add_module(INSIDE, critic.to(accelerator.device))
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    names = plugin.transformer_cls_names_to_wrap or policy._no_split_modules
    plugin.transformer_cls_names_to_wrap = sorted({*names, type(critic).__name__})


def without_critic(state_dict: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """A policy's tensors, by their names, without those of the critic inside."""
    return state_dict and {name: tensor for name, tensor in state_dict.items() if not is_critics(name)}


@contextmanager
def taken_out(policy: PreTrainedModel) -> Iterator[None]:
    """Inside the block the policy has no critic, so that it is saved as what it was; what is saved is gathered before."""
    critic = policy._modules.pop(INSIDE, None)
    try:
        yield
    finally:
        if critic is not None:
            policy.add_module(INSIDE, critic)


def send_policy_alone(sampler: "VLLMGeneration", policy: PreTrainedModel) -> None:
    """Let TRL's vLLM be sent the policy's weights without those of the critic inside, which it would not know."""
    sync = sampler.sync_weights

    def sync_policy() -> None:
        with taken_out(as_cut(policy)):
            sync()

    sampler.sync_weights = sync_policy


def is_critics(name: str) -> bool:
    """Whether a parameter of a policy is that of the critic inside."""
    return name.startswith(f"{INSIDE}.")
