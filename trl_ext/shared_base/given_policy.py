"""A policy, whichever way it is given: a model, one with an adapter (a role of a SharedBase too), or the path of either."""

import os

import torch
from peft import PeftConfig, PeftModel, TaskType
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from trl_ext.sequences.tokenizers import tokenizer_at, tokenizer_beside
from trl_ext.shared_base.adapter_files import saved_adapter
from trl_ext.shared_base.shared_base import SharedBase
from trl_ext.shared_base.shared_tree import tree_over
from trl_ext.trainer_kit.loading import quiet_loading
from trl_ext.trainer_kit.passes import under_adapter

Model = PreTrainedModel | PeftModel
Given = Model | str | os.PathLike
Base = SharedBase | str | os.PathLike | None


def given_policy(
    given: Given, base: Base, tokenizer: PreTrainedTokenizerBase | None, *, device: torch.device, call: str
) -> tuple[Model, PreTrainedTokenizerBase]:
    """A causal LM, as it is or loaded from its path, and its tokenizer; nothing of a SharedBase changes.

    Args:
        given: A model, or the path or hub id of one, or of an adapter.
        base: What such an adapter goes on; None: the one that it names.
        tokenizer: None: the one beside what was given, else the base's.
        device: For what is loaded, unless it is on a SharedBase.
        call: Who asks, for messages.
    """
    if not isinstance(base, SharedBase | str | os.PathLike | None):
        raise ValueError(
            f"{call}, base={type(base).__name__}: expected a SharedBase or a path. Give SharedBase(model)."
        )
    if isinstance(given, str | os.PathLike):
        path = os.path.expanduser(os.fspath(given))
        model = _at_path(path, base, device, call)
    elif isinstance(given, Model) and under_adapter(given).can_generate():
        path, model = None, given
    else:
        raise ValueError(
            f"{call}: expected a causal LM, plain or with an adapter, or the path of one, got {type(given).__name__}. Of "
            "a SharedBase, give a role: base.policy(…)."
        )
    if tokenizer is None and isinstance(base, SharedBase):
        tokenizer = tokenizer_at(path) or base.tokenizer
    return model, tokenizer or tokenizer_beside(path, model.config._name_or_path, call=call)


def _at_path(path: str, base: Base, device: torch.device, call: str) -> Model:
    try:
        if find_adapter_config_file(path) is None:
            return _loaded(path, device, call)
        if isinstance(base, SharedBase):
            tree, name = tree_over(base.model), base.name
        else:
            name = os.path.expanduser(base or PeftConfig.from_pretrained(path).base_model_name_or_path or "")
            tree = _loaded(name, device, call)
    except OSError as error:
        raise ValueError(
            f"{call}: {path!r} cannot be loaded ({str(error).strip().splitlines()[0]}). Give a folder written by "
            "save_pretrained, or a hub id that can be reached or was downloaded before; `base` where an adapter's has moved."
        ) from error
    return saved_adapter(tree, path, task=TaskType.CAUSAL_LM, call=call, base=name)


def _loaded(path: str, device: torch.device, call: str) -> PreTrainedModel:
    place = None if device.type == "cpu" else {"": device}
    with quiet_loading():
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype="auto", device_map=place, output_loading_info=True
        )
    if report["missing_keys"] or "score.weight" in report["unexpected_keys"]:
        lacks = sorted(report["missing_keys"])[:1] or "a `score` head instead of a vocabulary's"
        raise ValueError(f"{call}: {path!r} is no causal LM (weights: {lacks}). A reward model goes into `rewards`.")
    return model


def name_of(given: Given) -> str:
    """What a model is called beside its numbers: its path, or the place that it was loaded from."""
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    return f"{type(under_adapter(given)).__name__} {given.config._name_or_path}".strip()


def check_same_words(
    given: Given, reference: Model, policy: Model, tokenizer: PreTrainedTokenizerBase, *, call: str
) -> None:
    """Raise a ValueError unless an id means the same word to a reference, as it was given and loaded, and to a policy."""
    ours, size = (under_adapter(model).config.get_text_config().vocab_size for model in (policy, reference))
    theirs = tokenizer_at(given if isinstance(given, str | os.PathLike) else None, reference.config._name_or_path)
    words = {} if theirs is None else {i: word for word, i in theirs.get_vocab().items()}
    added = {} if theirs is None else tokenizer.get_added_vocab() | theirs.get_added_vocab()  # may have new names
    other = [
        word
        for word, i in tokenizer.get_vocab().items()
        if words.get(i, word) != word and not {word, words[i]} & added.keys()
    ]
    if ours != size or other:
        why = f"{other[0]!r} has another id there" if other else f"it has {size} tokens, the policy {ours}"
        raise ValueError(
            f"{call}(reference={name_of(given)!r}): {why}. KL needs one vocabulary: give the policy's start."
        )
