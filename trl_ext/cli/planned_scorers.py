"""Who scores completions, as far as a plan depends on it: reward models like the policy, and other models."""

import os
from pathlib import Path

from peft import PeftConfig
from transformers import AutoConfig, PretrainedConfig

from trl_ext.memory_planning.memory_terms import BYTES_OF, base_bytes
from trl_ext.memory_planning.plan_judges import PlannedJudge, shape_if_known
from trl_ext.memory_planning.trainer_plan import loaded_judge, reward_modules
from trl_ext.trainer_kit.saved_adapters import is_adapter


def planned_scorers(rewards: list, policy: PretrainedConfig, *, shared: bool, dtype: str) -> dict[str, object]:
    """What the plan is told of rewards, by the names of `memory_plan`'s arguments.

    Args:
        rewards: Paths of reward models, and functions, of which some hold a model.
        policy: The policy's configuration.
        shared: Whether reward models are adapters of the policy's base.
        dtype: That reward models are taken to be loaded in.
    """
    names = [reward for reward in rewards if isinstance(reward, str)]
    others = [] if shared else [other for name in names if (other := _unlike(name, policy, dtype)) is not None]
    holders, seen = reward_modules(reward for reward in rewards if not isinstance(reward, str)), set()
    held = [loaded_judge(holder.held_model(), seen) for holder in holders]
    return {
        "reward_models": len(names) - len(others),
        "judges": others + held,
        "reward_batch": max((holder.batch_size for holder in holders), default=8),
    }


def _unlike(name: str, policy: PretrainedConfig, dtype: str) -> PlannedJudge | None:
    """A reward model that is not like the policy; None for one that is, or is not there yet."""
    base = PeftConfig.from_pretrained(name).base_model_name_or_path or "" if is_adapter(name) else name
    try:
        shape = shape_if_known(AutoConfig.from_pretrained(os.path.expanduser(base)))
    except (OSError, ValueError):
        return None
    if shape is not None and shape == shape_if_known(policy):
        return None
    width = BYTES_OF[dtype]
    files = sum(file.stat().st_size for file in Path(base).expanduser().glob("*.safetensors"))
    weights = files if shape is None else base_bytes(shape, bits=None, width=width, head=False)
    return PlannedJudge(name, weights, shape, None, width)
