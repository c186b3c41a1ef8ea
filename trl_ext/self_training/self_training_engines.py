"""Which engines RAFT and ReST train under: one process, data parallelism, and FSDP2, with whole weights while they sample."""

from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from trl_ext.trainer_kit.engine_words import SELF_TRAINING
from trl_ext.trainer_kit.fsdp_settings import gather_head, keep_outputs, of_model, of_plugin
from trl_ext.trainer_kit.refusals import refuse_settings
from trl_ext.trainer_kit.sharding import check_prepared, engine_of, refuse_engine

REFUSAL = SELF_TRAINING


def shards_policy(trainer: Trainer) -> bool:
    """Whether FSDP2 cuts what is trained; a ValueError for other engines, and for what is not to be had under FSDP2."""
    engine, name = engine_of(trainer), type(trainer).__name__
    if engine is None:
        return False
    if engine != "FSDP2":
        refuse_engine(engine, trainer=name, **REFUSAL)
    plugin, config = trainer.accelerator.state.fsdp_plugin, type(trainer.args).__name__
    refuse_settings([*of_plugin(plugin, config=config), *of_model(trainer)], call=f"{name} under {engine}")
    keep_outputs(plugin)
    gather_head(trainer.model)
    return True


def check_evaluates(trainer: Trainer) -> None:
    """Raise a ValueError for an evaluation of what FSDP2 is to cut, and has not yet."""
    check_prepared(trainer, engine_of(trainer) is None or isinstance(trainer.model, FSDPModule))
