"""Adapters of a shared base: new ones, and saved ones that are checked to belong to it."""

import copy
import os
import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from peft.utils import load_peft_weights
from torch import Tensor
from transformers import PreTrainedModel

HARMLESS_INITS = (True, False, "gaussian", "orthogonal")
SCORE = "base_model.model.score.weight"  # a head's name in PEFT's files


def default_lora() -> LoraConfig:
    """LoRA of rank 16 on all linear layers of the blocks."""
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")


def new_adapter(tree: PreTrainedModel, lora: LoraConfig | None, *, task: TaskType, call: str) -> PeftModel:
    """The tree with a new adapter, and for a scorer a trained copy of its head.

    Raises:
        ValueError: For LoRA that would change the base.
    """
    config = copy.deepcopy(lora or default_lora())
    check_leaves_the_base(config, tree, call=call)
    config.task_type = task
    return get_peft_model(tree, config)


def saved_adapter(
    tree: PreTrainedModel, path: str | os.PathLike, *, task: TaskType, call: str, base: str
) -> PeftModel:
    """The tree with a saved adapter, which can be trained on.

    A scorer may take the adapter of a causal LM for its trunk: it then keeps its own head.

    Args:
        tree: A causal LM or a scorer.
        path: A folder or hub id in PEFT's format.
        task: What the tree is.
        call: Who asks, for messages.
        base: The name of the base that the adapter must have been made for.

    Raises:
        ValueError: If there is no adapter, or it belongs to another base or kind of model.
    """
    config, weights = _read(os.path.expanduser(os.fspath(path)), call=call)
    check_leaves_the_base(config, tree, call=call)
    check_same_base(config.base_model_name_or_path, base, path=path, call=call)
    if task == TaskType.CAUSAL_LM and SCORE in weights:
        raise ValueError(
            f"{call}: {str(path)!r} is the adapter of a reward or value model. A policy needs one of a causal LM."
        )
    config.task_type, config.inference_mode = task, False
    model = get_peft_model(tree, config)
    if task == TaskType.SEQ_CLS:
        weights.setdefault(SCORE, tree.score.weight.detach().cpu())
        weights = {name: tensor for name, tensor in weights.items() if ".lm_head." not in name}
    _load(model, weights, path=path, call=call)
    _check_depth(config, weights, tree, path=path, call=call)
    return model


def check_leaves_the_base(config: PeftConfig, tree: PreTrainedModel, *, call: str) -> None:
    """Raise a ValueError for an adapter that would write into the weights which all roles share, or train them."""
    if not isinstance(config, LoraConfig):
        raise ValueError(
            f"{call}: expected LoRA, got {type(config).__name__}. Give a LoraConfig, or an adapter made with one."
        )
    if config.init_lora_weights not in HARMLESS_INITS:
        _refuse(
            call, config, "init_lora_weights", "it is made by changing the base's weights, which other roles share"
        )
    if config.bias != "none":
        _refuse(call, config, "bias", "biases belong to the base, which is frozen for all roles")
    if config.layer_replication:
        _refuse(call, config, "layer_replication", "a role has the layers of its base")
    if config.use_dora and getattr(tree, "is_loaded_in_8bit", False):
        _refuse(call, config, "use_dora", "on an 8-bit base DoRA takes the weights' scales away. Use bits=4, or none;")


def _refuse(call: str, config: LoraConfig, option: str, why: str) -> None:
    raise ValueError(f"{call}: LoraConfig({option}={getattr(config, option)!r}): {why}. Leave it out.")


def _check_depth(config: LoraConfig, weights: dict[str, Tensor], tree: PreTrainedModel, *, path, call: str) -> None:
    """PEFT notes the names of all layers that it found, so that the adapter of a shallower model would fit a deeper one."""
    deepest = max([int(number) for name in weights for number in re.findall(r"\.(\d+)\.", name)], default=None)
    layers = tree.config.get_text_config().num_hidden_layers
    if deepest is not None and deepest + 1 < layers and config.layers_to_transform is None:
        raise ValueError(
            _misfit(
                path,
                call,
                f"it has {deepest + 1} layers, and the base {layers} (if that is meant, its config says so "
                "by layers_to_transform)",
            )
        )


def has_score_head(path: str | os.PathLike, *, call: str) -> bool:
    """Whether a saved adapter is that of a trained reward or value model."""
    return SCORE in _read(os.path.expanduser(os.fspath(path)), call=call)[1]


def check_same_base(made_for: str | None, base: str, *, path: str | os.PathLike, call: str) -> None:
    """Raise a ValueError if an adapter names another base: the same hub id, or the same last part of a path, passes."""
    if made_for and base and Path(made_for).name != Path(base).name:
        raise ValueError(
            f"{call}: the adapter {str(path)!r} was made for the base {made_for!r}, and this one is {base!r}. Load "
            "that base, or, if the two are the same model, correct base_model_name_or_path in its adapter_config.json."
        )


def _read(path: str, *, call: str) -> tuple[PeftConfig, dict[str, Tensor]]:
    try:
        return PeftConfig.from_pretrained(path), load_peft_weights(path, device="cpu")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{call}: expected the folder or hub id of an adapter in PEFT's format, and could not read {path!r} "
            f"({str(error).strip().splitlines()[0]}). Save one with trainer.save_model() or save_pretrained()."
        ) from error


@torch.no_grad()
def _load(model: PeftModel, weights: dict[str, Tensor], *, path: str | os.PathLike, call: str) -> None:
    try:
        report = set_peft_model_state_dict(model, weights)
    except (RuntimeError, KeyError) as error:
        raise ValueError(_misfit(path, call, str(error).strip().splitlines()[-1].strip())) from error
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = trained & set(report.missing_keys)
    if missing or report.unexpected_keys:
        wrong = sorted(missing or report.unexpected_keys)[0]
        raise ValueError(_misfit(path, call, f"{'it lacks' if missing else 'the base has no place for'} {wrong}"))


def _misfit(path: str | os.PathLike, call: str, why: str) -> str:
    return (
        f"{call}: the adapter {str(path)!r} does not fit this base: {why}. It was made for a model of another shape; "
        "load the base that its adapter_config.json names."
    )
