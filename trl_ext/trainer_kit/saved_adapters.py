"""Adapters in PEFT's format: read, given the embedding rows that their files have, and attached whole or not at all."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import AuxiliaryTrainingWrapper, load_peft_weights
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

PREFIX = "base_model.model."  # of the names in PEFT's files
# In those files, of an embedding or vocabulary head: all rows, and of which side of an adapter each row is a token's.
WHOLE = r"((modules_to_save|original_module|token_adapter|base_layer)\.)*weight"
PARTS = ((r"(base_layer\.)?lora_embedding_A", 1), (r"(base_layer\.)?lora_B\.weight", 0))


@dataclass(frozen=True)
class SavedAdapter:
    """What the files of an adapter hold.

    Args:
        path: Folder or hub id.
        config: Its settings.
        weights: Its tensors, by their names in the files.
        call: Who asks, for messages.
    """

    path: str
    config: PeftConfig
    weights: dict[str, Tensor]
    call: str

    def misfit(self, why: str) -> ValueError:
        """The error that says why it does not fit a base."""
        return ValueError(
            f"{self.call}: the adapter {self.path!r} does not fit this base: {why}. It was made for a model of another "
            "shape; load the base that its adapter_config.json names."
        )


def is_adapter(path: str | os.PathLike) -> bool:
    """Whether a path or hub id is that of an adapter, and not of a whole model."""
    path = os.path.expanduser(os.fspath(path))
    whole = os.path.exists(os.path.join(path, "config.json"))
    return not whole and find_adapter_config_file(path) is not None


def read_adapter(path: str | os.PathLike, *, call: str) -> SavedAdapter:
    """The adapter in a folder or at a hub id, or a ValueError that begins with `call`."""
    path = os.path.expanduser(os.fspath(path))
    try:
        return SavedAdapter(path, PeftConfig.from_pretrained(path), load_peft_weights(path, device="cpu"), call)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{call}: expected the folder or hub id of an adapter in PEFT's format, and could not read {path!r} "
            f"({str(error).strip().splitlines()[0]}). Save one with trainer.save_model() or save_pretrained()."
        ) from error


def load_with_adapter(path: str, auto: Any, *, call: str, trainable: bool = False, **model_kwargs) -> PeftModel:
    """An adapter on the base that it names, with the embedding rows that it was trained with.

    Args:
        path: Of the adapter.
        auto: The class that loads the base, such as `AutoModelForCausalLM`.
        call: Who asks, for messages.
        trainable: Whether the adapter is trained on.
        model_kwargs: Of `auto.from_pretrained`.

    Raises:
        ValueError: If there is no adapter, or it names no base, or does not fit it.
    """
    adapter = read_adapter(path, call=call)
    base = auto.from_pretrained(base_of(adapter), **{"revision": adapter.config.revision} | model_kwargs)
    return attach(base, adapter, trainable=trainable)


def base_of(adapter: SavedAdapter) -> str:
    """The path or hub id of the base that an adapter names."""
    if not adapter.config.base_model_name_or_path:
        raise ValueError(
            f"{adapter.call}: the adapter {adapter.path!r} names no base. Write its path or hub id into "
            "adapter_config.json, as base_model_name_or_path."
        )
    return adapter.config.base_model_name_or_path


def same_base(made_for: str | None, base: str | None) -> bool:
    """Whether the base that an adapter names may be this one: the last parts of their ids or paths are equal, or unknown."""
    return not (made_for and base) or Path(made_for).name == Path(base).name


def of_scorer(adapter: SavedAdapter, scorer: PreTrainedModel) -> SavedAdapter:
    """What a scorer takes of an adapter, which may be a causal LM's: trunk and score, without the vocabulary head."""
    places = tuple(f"{PREFIX}{name}." for name, _ in scorer.named_children())
    weights = {name: tensor for name, tensor in adapter.weights.items() if name.startswith(places)}
    return replace(adapter, weights=weights)


def attach(model: PreTrainedModel, adapter: SavedAdapter, *, trainable: bool) -> PeftModel:
    """The model with an adapter, every tensor of which has found its place.

    Args:
        model: The base. Where the adapter brings embeddings, the model gets a copy of its own of them, so that a base
            whose tensors other models share stays as it is.
        adapter: The adapter; its config's `task_type` says what PEFT makes of the two.
        trainable: Whether the adapter is trained on.

    Raises:
        ValueError: If the adapter was made for a model of another shape.
    """
    _fit_embeddings(model, adapter)
    _fit_bias(model, adapter)
    adapter.config.inference_mode = False
    attached = get_peft_model(model, adapter.config)
    _load(attached, adapter)
    _check_depth(model, adapter)
    if not trainable:
        attached.requires_grad_(False)
        adapter.config.inference_mode = True
    return attached


def _fit_bias(model: PreTrainedModel, adapter: SavedAdapter) -> None:
    """A place for a head's bias, which transformers' sequence classifiers lack, and a critic that was a head on a policy has."""
    score = dict(model.named_children()).get("score")
    if f"{PREFIX}score.bias" in adapter.weights and isinstance(score, nn.Linear) and score.bias is None:
        score.bias = nn.Parameter(torch.zeros_like(score.weight[:, 0]))


# Embeddings


def _fit_embeddings(model: PreTrainedModel, adapter: SavedAdapter) -> None:
    """As many rows as the adapter's files have, in tables of the model's own wherever the files write into them.

    transformers resizes a table in place, and so would everybody's who shares it.
    """
    tables = _tables(model)
    old, trained = model.get_input_embeddings().num_embeddings, _trained_tokens(adapter.config)
    whole = {name: _rows(adapter, name, WHOLE, dim=0) for name in tables}
    parts = [_rows(adapter, name, part, dim=dim) for name in tables for part, dim in PARTS]
    new = max(set().union(*whole.values(), *parts, {token + 1 for token in trained if token >= old}), default=old)
    tied = len({id(table.weight) for table in tables.values()}) == 1
    random = [name for name in tables if not (any(whole.values()) if tied else whole[name])]
    if random and not trained.issuperset(range(old, new)):
        raise ValueError(
            f"{adapter.call}: the adapter {adapter.path!r} was trained with {new} tokens, the base has {old}, and there is "
            f"no {random[0]} in its files, whose further rows would be random. Save it again with "
            "save_pretrained(…, save_embedding_layers=True)."
        )
    if new != old or any(whole.values()):
        _own(tables)
    if new != old:
        model.resize_token_embeddings(new, mean_resizing=False)


def _tables(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The input embedding and, where there is one, the vocabulary head, by their names in the model."""
    tables = [table for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table is not None]
    return {name: module for name, module in model.named_modules() if any(module is table for table in tables)}


def _rows(adapter: SavedAdapter, table: str, part: str, *, dim: int) -> set[int]:
    """Numbers of tokens of those tensors of a table that a pattern names."""
    names = re.compile(re.escape(f"{PREFIX}{table}.") + part)
    return {tensor.shape[dim] for name, tensor in adapter.weights.items() if names.fullmatch(name)}


def _trained_tokens(config: PeftConfig) -> set[int]:
    """Ids whose rows are trained one by one, which PEFT keeps apart from the table."""
    given = config.to_dict().get("trainable_token_indices") or config.to_dict().get("token_indices") or []
    return {token for ids in (given.values() if isinstance(given, dict) else [given]) for token in ids}


def _own(tables: dict[str, nn.Module]) -> None:
    """Weights of the tables' own instead of those that may be shared; tied ones stay tied."""
    copies = {id(table.weight): table.weight.detach().clone() for table in tables.values()}
    copies = {key: nn.Parameter(copy, requires_grad=False) for key, copy in copies.items()}
    for table in tables.values():
        table.weight = copies[id(table.weight)]


# Weights


@torch.no_grad()
def _load(attached: PeftModel, adapter: SavedAdapter) -> None:
    try:
        report = set_peft_model_state_dict(attached, adapter.weights)
    except (RuntimeError, KeyError, IndexError) as error:  # IndexError: a token that is trained and has no row
        raise adapter.misfit(str(error).strip().splitlines()[-1].strip()) from error
    if adapter.config.is_prompt_learning:  # of which the report knows nothing
        return
    trained = {name for name, parameter in attached.named_parameters() if parameter.requires_grad}
    wrapped = tuple(
        f"{name}." for name, part in attached.named_modules() if isinstance(part, AuxiliaryTrainingWrapper)
    )
    missing = trained & set(report.missing_keys)
    unexpected = [name for name in report.unexpected_keys if not name.startswith(wrapped)]  # PEFT saves those twice
    if missing or unexpected:
        wrong = sorted(missing or unexpected)[0]
        raise adapter.misfit(f"{'it lacks' if missing else 'the base has no place for'} {wrong}")


def _check_depth(model: PreTrainedModel, adapter: SavedAdapter) -> None:
    """PEFT notes the names of all layers that it found, so that the adapter of a shallower model would fit a deeper one."""
    if not isinstance(adapter.config, LoraConfig) or isinstance(adapter.config.target_modules, str):
        return  # a pattern says itself which layers it means
    numbers = [int(number) for name in adapter.weights for number in re.findall(r"\.(\d+)\.", name)]
    deepest, layers = max(numbers, default=None), model.config.get_text_config().num_hidden_layers
    if deepest is not None and deepest + 1 < layers and adapter.config.layers_to_transform is None:
        raise adapter.misfit(
            f"it has {deepest + 1} layers, and the base {layers} (if that is meant, its config says so by "
            "layers_to_transform)"
        )
