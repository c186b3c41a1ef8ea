"""Which engines PPO trains under: one process, data parallelism, and with the critic inside the policy FSDP2 and ZeRO."""

from typing import TYPE_CHECKING, Any

from transformers import Trainer

from trl_ext.ppo.zero_checks import of_zero, say_how_it_clips
from trl_ext.rewards.reward_columns import holders_in
from trl_ext.trainer_kit.engine_words import FSDP2_OR_DDP
from trl_ext.trainer_kit.fsdp_settings import gather_head, keep_outputs, of_model, of_plugin
from trl_ext.trainer_kit.refusals import UNTRIED, Refusal, refuse_settings
from trl_ext.trainer_kit.sharding import SHARDING, but_for, check_uncut, engine_asked, engine_of, refuse_engine

if TYPE_CHECKING:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from trl import GRPOTrainer

REFUSAL = {
    "trainer": "PPOTrainer",
    "runs": "on one device, with data parallelism, under FSDP2 or under DeepSpeed ZeRO-1 to ZeRO-3",
    "why": "its critic is inside the model that those shard, and outside for the other engines",
    "instead": FSDP2_OR_DDP,
}

SETTINGS = {
    "config": "PPOConfig",
    "unwrapped": "the critic would be in one unit with the policy, whole only while that runs",
    "read_by_one": "the reference is a copy of the policy that each process has read, and but one would have read it",
    "kept_whole": None,
}


def refuse_early(args: Any) -> None:
    """Raise a ValueError for what was asked for, while there are whole weights, and before TRL waits for a server of vLLM.

    Args:
        args: The trainer's config, if it has one.
    """
    engine = engine_asked(args)
    refuse_engine(but_for(engine, *SHARDING), **REFUSAL)
    if engine is not None:
        refuse_settings(_of_vllm(args, engine), call=f"PPOTrainer under {engine}")


def check_whole(models: dict[str, object], rewards: object) -> None:
    """Raise a ValueError for a model that came in pieces.

    Args:
        models: By the arguments that they came in.
        rewards: One, or several, which may hold models.
    """
    given = rewards if isinstance(rewards, list | tuple) else [rewards]
    held = [holder.held_model() for reward in given for holder in holders_in(reward)]
    for name, model in (*models.items(), *(("reward_funcs", one) for one in (*given, *held))):
        check_uncut(model, call=f"PPOTrainer({name}={type(model).__name__})")


def shards_policy(trainer: "GRPOTrainer") -> bool:
    """Whether an engine shards what is trained; a ValueError for other engines, and for what is not to be had under it."""
    engine = engine_of(trainer)
    if engine is None:
        return False
    refuse_engine(None if engine in SHARDING else engine, **REFUSAL)
    of_engine = _of_fsdp2(trainer.accelerator.state.fsdp_plugin) if engine == "FSDP2" else of_zero(trainer)
    found = [*_of_vllm(trainer.args, engine), *of_engine, *_of_trainer(trainer)]
    refuse_settings(found, call=f"PPOTrainer under {engine}")
    if engine == "FSDP2":
        keep_outputs(trainer.accelerator.state.fsdp_plugin)
        gather_head(trainer.model)
    else:
        say_how_it_clips(trainer, engine)
    return True


def _of_fsdp2(plugin: "FullyShardedDataParallelPlugin") -> list[Refusal]:
    """What accelerate's settings may be."""
    why = "it clips the critic's gradient with the policy's"
    older = (not hasattr(Trainer, "_clip_grad_norm"), "this transformers", why, "Upgrade transformers")
    return [*of_plugin(plugin, **SETTINGS), older]


def _of_vllm(args: Any, engine: str) -> list[Refusal]:
    """How TRL may have vLLM sample."""
    asked, mode = getattr(args, "use_vllm", False), getattr(args, "vllm_mode", None)
    own = "Leave it out: the policy samples, all processes in step"
    return [
        (asked and engine.startswith("DeepSpeed"), "use_vllm=True", UNTRIED, own),
        (asked and mode != "server", f"vllm_mode={mode!r}", UNTRIED, "Set vllm_mode='server'"),
    ]


def _of_trainer(trainer: "GRPOTrainer") -> list[Refusal]:
    """What the trainer may be told."""
    args = trainer.args
    own = "Leave it out: the policy samples, all processes in step"
    return [
        (
            bool(args.use_transformers_continuous_batching),
            "use_transformers_continuous_batching=True",
            "it samples with weights that are not whole",
            own,
        ),
        *of_model(trainer),
    ]
