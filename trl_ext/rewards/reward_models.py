"""Reward models, i.e. sequence-classification models with one label: loading them, plain or adapters, and asking them."""

import json
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from trl_ext.rewards.shared_prefix import groups_to_share, score_behind_prefix
from trl_ext.sequences.padding import right_padded
from trl_ext.trainer_kit.loading import DAMAGED, quiet_loading, why_unloadable
from trl_ext.trainer_kit.passes import can_share, eval_mode
from trl_ext.trainer_kit.saved_adapters import PREFIX, attach, base_of, of_scorer, read_adapter

HEADS = ("score", "classifier")  # where transformers has the labels
CONFIG_KWARGS = ("revision", "trust_remote_code", "token", "cache_dir", "subfolder")
HUB_KWARGS = ("revision", "token", "cache_dir", "subfolder")
BIAS = "score.bias"
OTHER_HEADS = {"v_head", "value_head", "reward_head", "regression_head"}  # of other libraries' models of one number


def load_scorer(
    path: str, *, new_head: bool = False, trainable: bool = False, **model_kwargs
) -> PreTrainedModel | PeftModel:
    """The sequence-classification model with one label at `path`, in eval mode.

    Args:
        path: A checkpoint or hub id, or the folder of an adapter, whose base is loaded with it.
        new_head: Accept a model without a `score` head, such as a causal LM, and give it one of zeros.
        trainable: Whether its parameters (of an adapter: the adapter's and its head) require gradients.
        model_kwargs: Of `from_pretrained`; `dtype` is float32 unless given, as in TRL.

    Raises:
        ValueError: If there is no such model, it has more than one label, or weights are missing.
    """
    path = os.path.expanduser(path)
    try:
        with quiet_loading():
            if find_adapter_config_file(path) is None:
                model = _load_plain(path, new_head=new_head, **model_kwargs)
                _set_trainable(model, trainable)
                return model.eval()
            return _load_adapter(path, new_head=new_head, trainable=trainable, **model_kwargs).eval()
    except DAMAGED as error:
        raise ValueError(
            f"Reward model {path!r}: expected a folder written by save_pretrained, of a model or an adapter, or a hub "
            f"id, and could load neither ({why_unloadable(error)}). Check the spelling, and for an id "
            "that the hub can be reached or that it was downloaded before."
        ) from error


def check_one_label(model: object, model_kwargs: dict[str, Any] | None) -> None:
    """Raise a ValueError for a path where a reward model of several labels was saved.

    Any other model has a new head made for it, and its config need not say of how many labels.

    Args:
        model: As given to a trainer; what is no path is passed over.
        model_kwargs: Of `from_pretrained`.
    """
    if not isinstance(model, str):
        return
    known = {name: value for name, value in (model_kwargs or {}).items() if name in CONFIG_KWARGS}
    config = AutoConfig.from_pretrained(os.path.expanduser(model), **known)
    has_head = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    if has_head and config.num_labels != 1:
        raise ValueError(
            f"Reward model {model!r} has {config.num_labels} labels: expected 1, one number per completion. Train it with "
            "num_labels=1, or begin with the causal LM."
        )


def _load_plain(path: str, *, new_head: bool, **model_kwargs) -> PreTrainedModel:
    model, missing = _load_base(path, path, {}, **model_kwargs)
    _check_missing(path, missing, new_head)
    _zero(model, missing)
    return model


def _load_adapter(path: str, *, new_head: bool, trainable: bool, **model_kwargs) -> PeftModel:
    """Base, adapter and head; an adapter of a causal LM is taken for its trunk."""
    adapter = read_adapter(path, call=f"Reward model {path!r}")
    own = {name.removeprefix(PREFIX): tuple(tensor.shape) for name, tensor in adapter.weights.items()}
    base, missing = _load_base(base_of(adapter), path, own, **{"revision": adapter.config.revision} | model_kwargs)
    _check_missing(path, missing - own.keys(), new_head)
    _zero(base, missing - own.keys())
    if missing - own.keys():  # its head is new, so there is none to look for in its files
        adapter.config.task_type = None
    model = attach(base, of_scorer(adapter, base), trainable=trainable)
    head = dict(base.named_children()).get("score")
    if isinstance(head, nn.Linear):  # the adapter has none of its own
        head.requires_grad_(trainable)
    return model


def _load_base(
    base: str, path: str, own: dict[str, tuple[int, ...]], **model_kwargs
) -> tuple[PreTrainedModel, set[str]]:
    """The model with one label, and the names of the weights that its checkpoint lacks; a checkpoint's config need not
    say how many labels its head has.

    Args:
        base: Where it is.
        path: Of which reward model, for messages.
        own: Shapes of what an adapter has in place of the base's weights.
        model_kwargs: Of `from_pretrained`.
    """
    model, report = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=1,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # judged here
        **{"dtype": torch.float32} | model_kwargs,
    )
    found = {name: tuple(shape) for name, shape, _ in report["mismatched_keys"]}
    found = {name: shape for name, shape in found.items() if name not in own}
    found |= {name: shape for name, shape in own.items() if name.split(".")[0] in HEADS and shape[0] != 1}
    _check_shapes(path, found, {name: tuple(parameter.shape) for name, parameter in model.named_parameters()})
    if BIAS in report["unexpected_keys"]:  # of a critic that was a head on a policy
        model.score.bias = nn.Parameter(_saved_tensor(base, BIAS, **model_kwargs).to(model.score.weight))
    unread = sorted({name.split(".")[0] for name in report["unexpected_keys"]} & OTHER_HEADS)
    if unread:
        raise ValueError(
            f"Reward model {path!r} has a head {unread[0]!r}, which {type(model).__name__} does not read. Expected one "
            "written by save_pretrained of a sequence-classification model with num_labels=1."
        )
    return model, set(report["missing_keys"]) | {name for name, _, _ in report["mismatched_keys"]}


def _check_shapes(path: str, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    """Raise a ValueError for weights of other shapes than those of a model with one label."""
    other = sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name])
    if not other:
        return
    came, wanted = found[other[0]], expected[other[0]]
    if wanted[0] == 1 and came[1:] == wanted[1:]:
        raise ValueError(
            f"Reward model {path!r} has {came[0]} labels: expected 1, one number per completion. Train it with "
            "num_labels=1."
        )
    raise ValueError(
        f"Reward model {path!r}: its {other[0]} is of shape {list(came)}, and by its config of {list(wanted)}. Load a "
        "checkpoint whose config.json is that of its weights."
    )


def _check_missing(path: str, missing: set[str], new_head: bool) -> None:
    needed = {name for name in missing if not (new_head and name.startswith("score."))}
    if needed:
        raise ValueError(
            f"Reward model {path!r} has no weights for {', '.join(sorted(needed)[:3])}, which would be random and so "
            "would the scores. Expected a trained reward model; of an adapter, one trained with "
            "modules_to_save=['score']."
        )


def _saved_tensor(path: str, name: str, **model_kwargs) -> torch.Tensor:
    known = {key: value for key, value in model_kwargs.items() if key in HUB_KWARGS}
    index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **known)
    file = (
        SAFE_WEIGHTS_NAME if index is None else json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"][name]
    )
    with safe_open(cached_file(path, file, **known), "pt") as tensors:
        return tensors.get_tensor(name)


@torch.no_grad()
def _zero(model: PreTrainedModel, names: set[str]) -> None:
    for name in names:
        model.get_parameter(name).zero_()


def _set_trainable(model: nn.Module, trainable: bool) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(trainable and parameter.is_floating_point())


@torch.no_grad()
def score_sequences(
    module: nn.Module, ids: list[list[int]], keys: list[Hashable], *, pad_token_id: int, batch_size: int
) -> list[float]:
    """One score per sequence of tokens, in eval mode, which is left as it was found.

    Args:
        module: A sequence-classification model with one label.
        ids: The sequences.
        keys: Equal where they begin with the same prompt, whose samples share its reading where that is worth it.
        pad_token_id, batch_size: Of the passes.
    """
    scores, options = {}, {"pad_token_id": pad_token_id, "batch_size": batch_size}
    shared = groups_to_share(keys, ids) if can_share(module) else []
    rest = sorted(set(range(len(ids))).difference(*(rows for rows, _ in shared)), key=lambda i: len(ids[i]))
    with eval_mode(module):
        for rows, common in shared:
            found = score_behind_prefix(module, [ids[row] for row in rows], common, **options)
            scores |= zip(rows, found, strict=True)
        for start in range(0, len(rest), batch_size):  # like lengths together: little padding
            rows = rest[start : start + batch_size]
            scores |= zip(rows, _forward(module, [ids[row] for row in rows], pad_token_id), strict=True)
    return [scores[row] for row in range(len(ids))]


def _forward(module: nn.Module, ids: list[list[int]], pad_token_id: int) -> list[float]:
    """One batch; a sequence without tokens is one pad token."""
    rows = [row or [pad_token_id] for row in ids]
    inputs, mask = right_padded(rows, pad_token_id, device=next(module.parameters()).device)
    return module(input_ids=inputs, attention_mask=mask, use_cache=False).logits[:, 0].float().tolist()
