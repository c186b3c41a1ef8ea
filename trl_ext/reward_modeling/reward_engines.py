"""Which engines a reward model is trained under, and what of their settings would lose something."""

from typing import TYPE_CHECKING, Any

from transformers import Trainer

from trl_ext.trainer_kit.fsdp_settings import of_model, of_plugin, of_saving
from trl_ext.trainer_kit.refusals import Refusal, refuse_settings
from trl_ext.trainer_kit.sharding import (
    SHARDING,
    but_for,
    check_prepared,
    check_uncut,
    engine_asked,
    engine_of,
    refuse_engine,
)
from trl_ext.trainer_kit.zero_settings import of_deepspeed, of_one_dtype, untried

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "ImitationRewardTrainer"
REFUSAL = {
    "trainer": NAME,
    "runs": "on one device, with data parallelism, under DeepSpeed ZeRO-1 or ZeRO-2 or, with an imitation_head of its own, "
    "under FSDP2 or ZeRO-3",
    "why": "the vocabulary head that it reads the trunk with is in pieces, or read before they are put together",
}


def refuse_early(args: Any, model: "str | PreTrainedModel") -> None:
    """Raise a ValueError for an engine that the imitation term cannot be had with, while there are whole weights."""
    refuse_engine(but_for(engine_asked(args), *SHARDING), **REFUSAL)
    check_uncut(model, call=f"{NAME}(model={type(model).__name__})")


def check_engine(trainer: Trainer, *, imitates: bool) -> None:
    """Raise a ValueError for settings of an engine by which something would be lost; with imitation also for what is untried.

    Without it all is TRL's, engines too.
    """
    engine = engine_of(trainer)
    if imitates:
        refuse_engine(None if engine in SHARDING else engine, **REFUSAL)
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        refuse_settings(_of_engine(trainer, imitates), call=f"{NAME} under {engine}")


def check_evaluates(trainer: Trainer) -> None:
    """Raise a ValueError for an evaluation of what an engine is to prepare together with its optimizer, and has not yet."""
    waits = engine_of(trainer) in ("FSDP2", "DeepSpeed ZeRO-1", "DeepSpeed ZeRO-2")
    check_prepared(trainer, not waits or trainer.optimizer is not None)


def _of_engine(trainer: Trainer, imitates: bool) -> list[Refusal]:
    if trainer.is_deepspeed_enabled:
        of_engine = [*of_deepspeed(trainer), of_one_dtype(trainer), *(untried(trainer) if imitates else ())]
    else:
        plugin = trainer.accelerator.state.fsdp_plugin
        of_engine = of_plugin(plugin, config="ImitationRewardConfig") if imitates else [of_saving(plugin)]
    return [*of_engine, *(of_model(trainer) if imitates else ())]
