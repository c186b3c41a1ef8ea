"""What a run would only find when it loads its models, found in their folders: no weight is read."""

import os
import warnings
from pathlib import Path

import torch
from peft import PeftConfig
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from trl_ext.rewards.reward_models import HEADS
from trl_ext.sequences.tokenizers import tokenizer_beside
from trl_ext.trainer_kit.checkpoint_files import checkpoint_folders
from trl_ext.trainer_kit.loading import loading
from trl_ext.trainer_kit.own_folders import check_is_folder
from trl_ext.trainer_kit.run_record import read_record
from trl_ext.trainer_kit.saved_adapters import is_adapter

OTHERS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
ADAPTERS_BEGIN = "base_model.model."


def check_policy(config: PretrainedConfig, *, call: str) -> None:
    """Raise a ValueError for a model that says itself that it is another than a language model."""
    names = config.architectures or []
    if names and all(name.endswith(OTHERS) for name in names):
        raise ValueError(
            f"{call}: expected a causal language model, and {_kind(config)}. Give the model to be trained."
        )


def check_scorer(name: str, *, flag: str, new_head: bool = False, may_come: bool = False) -> None:
    """Raise a ValueError unless there is a reward model with one label, and its tokenizer.

    Args:
        name: Path or hub id of a model, or of an adapter.
        flag: By which it was named.
        new_head: Whether it may lack a head, and gets one.
        may_come: Whether one that is not there is only warned of: a run is planned before its reward model is trained.
    """
    try:
        _check_scorer(name, flag=flag, new_head=new_head)
    except ValueError as error:
        if not may_come or Path(name).expanduser().exists():
            raise
        warnings.warn(f"{error} The run itself is refused without it.", stacklevel=2)


def _check_scorer(name: str, *, flag: str, new_head: bool) -> None:
    call, base = f"{flag} {name}", name
    with loading(call):
        if is_adapter(name):
            base = PeftConfig.from_pretrained(name).base_model_name_or_path or ""
        config = AutoConfig.from_pretrained(os.path.expanduser(base))
    labels = _labels(Path(name).expanduser(), config)
    if labels is None and not new_head:
        raise ValueError(
            f"{call}: expected a reward model, and it has no head for scores: {_kind(config)}. Train one with trl-ext reward."
        )
    if labels not in (None, 1):
        raise ValueError(f"{call}: expected a reward model of one label, got {labels}. Train one with trl-ext reward.")
    tokenizer_beside(name, base, call=call)


def _kind(config: PretrainedConfig) -> str:
    return f"it is a {', '.join(config.architectures or [type(config).__name__])}"


def _labels(folder: Path, config: PretrainedConfig) -> int | None:
    """How many its head has, by the headers of its files, or else by its config; None without a head."""
    shapes = {name: shape for file in sorted(folder.glob("*.safetensors")) for name, shape in _shapes(file).items()}
    known = [shapes[name][0] for name in (f"{head}.weight" for head in HEADS) if name in shapes]
    if known:
        return known[0]
    has_head = any(name.split(".")[0] in HEADS for name in shapes)
    scores = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    return config.num_labels if has_head or (scores and not shapes) else None


def _shapes(file: Path) -> dict[str, list[int]]:
    """Of the tensors in a file, an adapter's by the names of their modules."""
    with loading(str(file)), safe_open(file, framework="pt") as tensors:
        names = tensors.keys()
        return {name.removeprefix(ADAPTERS_BEGIN): tensors.get_slice(name).get_shape() for name in names}


def check_lora_targets(targets: list[str] | str | None, config: PretrainedConfig) -> None:
    """Raise a ValueError for modules to adapt of which the model has none; it is made without weights."""
    names = [targets] if isinstance(targets, str) else targets or []
    if not names or names == ["all-linear"]:
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    there = {name for name, _ in model.named_modules()}
    missing = [name for name in names if not any(own == name or own.endswith(f".{name}") for own in there)]
    if missing:
        linear = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        raise ValueError(
            f"--lora_target_modules {' '.join(names)}: the model has no module {missing[0]!r}. Its linear ones are "
            f"{', '.join(sorted(linear))}; all-linear takes all but the head."
        )


def check_output_dir(folder: Path, trainer: str) -> None:
    """Raise a ValueError for a folder that cannot be written, or that is another trainer's run."""
    call = f"--output_dir {folder}"
    check_is_folder(folder, call=call)
    there = [folder, *checkpoint_folders(folder)] if folder.is_dir() else []
    owner = next((record.get("trainer", trainer) for record in map(read_record, there) if record), trainer)
    if owner != trainer:
        raise ValueError(f"{call}: it holds a run of {owner}. Give this one a folder of its own.")
