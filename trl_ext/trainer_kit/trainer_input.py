"""What every trainer asks of what it is given to start from."""

from typing import Any, TypeVar

from peft import PeftModel
from transformers import PreTrainedModel
from trl import RewardConfig, SFTConfig
from trl.trainer.utils import get_config_model_id

from trl_ext.trainer_kit.adapters import check_head

Config = TypeVar("Config")


def given_or_default(
    args: Any, config: type[Config], model: str | PreTrainedModel | PeftModel, *, method: str
) -> Config | Any:
    """The config that was given; of None, `config` with its defaults, and a folder named by the model and the method."""
    if args is not None:
        return args
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return config(f"{name.split('/')[-1]}-{method}")


def check_offloading(args: SFTConfig | RewardConfig) -> None:
    """Raise a ValueError for `activation_offloading` without a card."""
    if args.activation_offloading and args.device.type == "cpu":
        raise ValueError(
            f"{type(args).__name__}(activation_offloading=True) on a CPU: activations are moved from a card to memory, and "
            "there is none. Leave it out."
        )


def refuse_scheduler(optimizers: tuple | None, *, trainer: str, why: str) -> None:
    """Raise a ValueError for a scheduler beside the optimizer."""
    if (optimizers or (None, None))[1] is not None:
        raise ValueError(
            f"{trainer}(optimizers=(…, scheduler)): {why}. Give the optimizer alone, (optimizer, None); lr_scheduler_type "
            "makes the schedule."
        )


def check_decoder(model: PreTrainedModel | PeftModel, *, sees_images: bool, trainer: str) -> None:
    """Raise a ValueError for a model that does not write text from text alone, or whose head TRL would misread."""
    if sees_images or model.config.is_encoder_decoder:
        kind = "a vision-language" if sees_images else "an encoder–decoder"
        raise ValueError(f"{trainer}(model=…): {kind} model is not supported. Give a decoder of text.")
    check_head(model, trainer=trainer)
