"""The numbers of a causal language model that memory depends on, read from its configuration alone."""

import json
import os
from pathlib import Path
from typing import Any

from trl_ext.memory_planning.layer_kinds import ModelShape
from trl_ext.memory_planning.plan_known_models import ARCHITECTURES, BUILT_IN, COUNTS, FIELDS, windows_of


def shape_of(model, *, call: str = "shape_of") -> ModelShape:
    """The shape of a model; no weights are read.

    The table of known architectures needs no torch; any other causal language model is counted on torch's meta device.

    Args:
        model: A built-in name, the path or hub id of a model or of its adapter-free folder, a `config.json`, a
            configuration, a loaded model, or a `ModelShape`.
        call: Named in errors.

    Raises:
        ValueError: If nothing is found, or it is no decoder of text.
    """
    if isinstance(model, ModelShape):
        return model
    if isinstance(model, dict):
        return _shape_of_fields(model, model.get("_name_or_path") or model.get("model_type", "a dict"), call)
    if isinstance(model, str | os.PathLike):
        name = os.fspath(model)
        known, path = BUILT_IN.get(name.lower()), Path(name).expanduser()
        if known or (path.suffix == ".json" and path.is_file()):
            return _shape_of_fields(known or _parsed(path, call), name, call)
        return _shape_of_config(_read_config(path, name, call), name, call)
    config = getattr(model, "config", model)  # a model's, or itself
    if not hasattr(config, "get_text_config"):
        raise ValueError(
            f"{call}(model={type(model).__name__}): expected a name, a folder, a configuration or a model. Give one of "
            f"{', '.join(BUILT_IN)}, or the path of a config.json."
        )
    return _shape_of_config(config, config._name_or_path or config.model_type, call)


def _shape_of_fields(fields: dict[str, Any], name: str, call: str) -> ModelShape:
    """The shape that a `config.json` describes."""
    if str(fields.get("model_type")) in ARCHITECTURES:
        return shape_from(fields, name=name, call=call)
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    others = {key: value for key, value in fields.items() if key != "model_type"}
    try:
        config = AutoConfig.for_model(str(fields.get("model_type")), **others)
    except (StrictDataclassError, ValueError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
        raise ValueError(
            f"{call}(model={name!r}): transformers makes no configuration of it ({_first_line(error)}). Mend its "
            "config.json, or install a transformers that knows the architecture."
        ) from error
    return _shape_of_config(config, name, call)


def _shape_of_config(config, name: str, call: str) -> ModelShape:
    """The shape that a configuration of transformers describes."""
    text = config.get_text_config(decoder=True)
    if text.model_type in ARCHITECTURES:
        return shape_from(text.to_dict(), name=name, call=call)
    from trl_ext.memory_planning.counted_models import counted_shape

    return counted_shape(config, name=name, call=call)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shape_from(config: dict[str, Any], *, name: str, call: str) -> ModelShape:
    """The shape that the fields of a `config.json` of a known architecture describe."""
    config = _with_defaults(config)
    kind = config["model_type"]
    missing = [field for field in FIELDS if config.get(field) is None]
    if missing:
        raise ValueError(
            f"{call}(model={name!r}): architecture {kind!r} without {missing} is not known. Expected the fields "
            f"{', '.join(FIELDS)}. Mend its config.json."
        )
    sizes = [config[field] for field in COUNTS]
    bad = {field: size for field, size in zip(COUNTS, sizes, strict=True) if not isinstance(size, int) or size < 1}
    if bad:
        raise ValueError(f"{call}(model={name!r}): expected whole numbers from 1 on, got {bad}. Mend its config.json.")
    biases = {"qkv_bias": config.get("attention_bias", False), "output_bias": config.get("attention_bias", False)}
    return ModelShape(
        name,
        *sizes,
        tied=config["tie_word_embeddings"],
        **{"mlp_bias": config.get("mlp_bias", False)} | biases | ARCHITECTURES[kind],
        windows=windows_of(config, config["num_hidden_layers"]),
    )


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """With what follows from other fields, where a configuration leaves it out."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    filled = {"num_key_value_heads": heads, "tie_word_embeddings": config.get("model_type") == "gemma2"}
    if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        filled["head_dim"] = hidden // heads
    return filled | {name: value for name, value in config.items() if value is not None}


def _parsed(path: Path, call: str) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{call}(model={str(path)!r}): it is no JSON ({error}). Give a model's config.json."
        ) from error
    if not isinstance(fields, dict):
        raise ValueError(
            f"{call}(model={str(path)!r}): expected an object with the fields of a model, got a {type(fields).__name__}. "
            "Give a model's config.json."
        )
    return fields


def _read_config(path: Path, name: str, call: str):
    """The configuration at a path or hub id, with the defaults of its architecture."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(path) if path.exists() else name)
    except (StrictDataclassError, OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{call}(model={name!r}): expected one of {', '.join(BUILT_IN)}, or a folder or hub id with a config.json, "
            f"and found none ({_first_line(error)}). Check the spelling."
        ) from error
