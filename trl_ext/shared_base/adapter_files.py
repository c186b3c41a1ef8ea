"""Adapters of a shared base: new ones, and saved ones that are checked to belong to it."""

import copy
import os

from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from trl_ext.trainer_kit.saved_adapters import attach, of_scorer, read_adapter, same_base

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
    adapter = read_adapter(path, call=call)
    check_leaves_the_base(adapter.config, tree, call=call)
    check_same_base(adapter.config.base_model_name_or_path, base, path=path, call=call)
    if task == TaskType.CAUSAL_LM and SCORE in adapter.weights:
        raise ValueError(
            f"{call}: {str(path)!r} is the adapter of a reward or value model. A policy needs one of a causal LM."
        )
    if SCORE in adapter.weights and len(adapter.weights[SCORE]) != 1:
        raise ValueError(
            f"{call}: the adapter {str(path)!r} has {len(adapter.weights[SCORE])} labels: expected 1, one number per "
            "completion. Train it with num_labels=1."
        )
    adapter.config.task_type = task
    if task == TaskType.SEQ_CLS:
        adapter = of_scorer(adapter, tree)
        adapter.weights.setdefault(SCORE, tree.score.weight.detach().cpu())
    return attach(tree, adapter, trainable=True)


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


def has_score_head(path: str | os.PathLike, *, call: str) -> bool:
    """Whether a saved adapter is that of a trained reward or value model."""
    return SCORE in read_adapter(path, call=call).weights


def check_same_base(made_for: str | None, base: str, *, path: str | os.PathLike, call: str) -> None:
    """Raise a ValueError if an adapter names another base: the same hub id, or the same last part of a path, passes."""
    if not same_base(made_for, base):
        raise ValueError(
            f"{call}: the adapter {str(path)!r} was made for the base {made_for!r}, and this one is {base!r}. Load "
            "that base, or, if the two are the same model, correct base_model_name_or_path in its adapter_config.json."
        )
