"""The numbers of a causal language model that memory depends on, read from its configuration alone."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_ext.memory_planning.plan_known_models import ARCHITECTURES, BUILT_IN, COUNTS, FIELDS


@dataclass(frozen=True)
class ModelShape:
    """A decoder of RMS norms, attention by rotary positions and a gated MLP; all sizes are counts of numbers.

    Args:
        name: For messages.
        vocab, hidden, intermediate, layers, heads, kv_heads, head_dim: V, H, I, and so on.
        tied: Whether embeddings and vocabulary head are one matrix.
        qkv_bias, output_bias, mlp_bias: Which linear layers have biases.
        qk_norm: Whether queries and keys are normalised per head.
        norms: Norms of H numbers per layer.
        windows: Of each layer, the tokens that its keys and values are kept of; None: all.
    """

    name: str
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norms: int = 2
    windows: tuple[int | None, ...] = ()

    @property
    def queries(self) -> int:
        """Numbers of all heads' queries of one token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Numbers of all heads' keys, and of their values, of one token."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of the linear layers of one block: q, k, v, o, gate, up, down."""
        H, Q, K, I = self.hidden, self.queries, self.keys, self.intermediate  # noqa: E741
        return (H, Q), (H, K), (H, K), (Q, H), (H, I), (H, I), (I, H)

    @property
    def linear_params(self) -> int:
        """Weights of the linear layers of all blocks, without biases: what is quantised."""
        return self.layers * sum(rows * columns for rows, columns in self.linears)

    @property
    def largest_linear(self) -> int:
        return max(rows * columns for rows, columns in self.linears)

    @property
    def small_params(self) -> int:
        """Biases and norms, of all blocks and of the last norm."""
        biases = self.qkv_bias * (self.queries + 2 * self.keys) + self.output_bias * self.hidden
        biases += self.mlp_bias * (2 * self.intermediate + self.hidden)
        norms = self.norms * self.hidden + self.qk_norm * 2 * self.head_dim
        return self.layers * (biases + norms) + self.hidden

    @property
    def embedding_params(self) -> int:
        return self.vocab * self.hidden

    @property
    def head_params(self) -> int:
        """Of a vocabulary head of its own; 0 where it is tied."""
        return 0 if self.tied else self.embedding_params

    @property
    def params(self) -> int:
        return self.linear_params + self.small_params + self.embedding_params + self.head_params


def shape_of(model, *, call: str = "shape_of") -> ModelShape:
    """The shape of a model; no weights are read.

    Args:
        model: A built-in name, the path or hub id of a model or of its adapter-free folder, a `config.json`, a
            configuration, a loaded model, or a `ModelShape`.
        call: Named in errors.

    Raises:
        ValueError: If nothing is found, or the architecture is not one whose layers are known.
    """
    if isinstance(model, ModelShape):
        return model
    if isinstance(model, dict):
        return shape_from(model, name=model.get("_name_or_path") or model.get("model_type", "a dict"), call=call)
    if isinstance(model, str | os.PathLike):
        name = os.fspath(model)
        known = BUILT_IN.get(name.lower())
        return shape_from(known or _read_config(name, call), name=name, call=call)
    config = getattr(model, "config", model)  # a model's, or itself
    if not hasattr(config, "get_text_config"):
        raise ValueError(
            f"{call}(model={type(model).__name__}): expected a name, a folder, a configuration or a model. Give one of "
            f"{', '.join(BUILT_IN)}, or the path of a config.json."
        )
    text = config.get_text_config()
    return shape_from(text.to_dict(), name=config._name_or_path or text.model_type, call=call)


def shape_from(config: dict[str, Any], *, name: str, call: str) -> ModelShape:
    """The shape that the fields of a `config.json` describe."""
    config = _with_defaults(config)
    kind = config.get("model_type")
    missing = [field for field in FIELDS if config.get(field) is None]
    if kind not in ARCHITECTURES or missing:
        raise ValueError(
            f"{call}(model={name!r}): architecture {kind!r}{f' without {missing}' if missing else ''} is not known. "
            f"Expected one of {', '.join(ARCHITECTURES)}, with the fields {', '.join(FIELDS)}. For another decoder of "
            "RMS norms, rotary attention and a gated MLP, pass a trl_ext.memory_planning.model_shapes.ModelShape."
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
        windows=_windows(config),
    )


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """With what follows from other fields, where a configuration leaves it out."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    filled = {"num_key_value_heads": heads, "tie_word_embeddings": config.get("model_type") == "gemma2"}
    if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        filled["head_dim"] = hidden // heads
    return filled | {name: value for name, value in config.items() if value is not None}


def _windows(config: dict[str, Any]) -> tuple[int | None, ...]:
    """Of each layer, how many tokens it looks back; None: all of them."""
    layers, window = config["num_hidden_layers"], config.get("sliding_window")
    if not window or not config.get("use_sliding_window", True):
        return (None,) * layers
    kinds = config.get("layer_types")
    if kinds is None and config["model_type"] == "gemma2":
        kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    if kinds is None and "max_window_layers" in config:  # qwen2, qwen3: the first ones see all
        kinds = ["full_attention"] * config["max_window_layers"] + ["sliding_attention"] * layers
    return tuple(
        window if kind == "sliding_attention" else None for kind in (kinds or ["sliding_attention"] * layers)
    )[:layers]


def _parsed(path: Path, call: str) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
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


def _read_config(name: str, call: str) -> dict[str, Any]:
    """The fields of the config.json at a path or hub id, with the defaults of its architecture."""
    path = Path(name).expanduser()
    if path.suffix == ".json" and path.is_file():
        return _parsed(path, call)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(path) if path.exists() else name).get_text_config().to_dict()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{call}(model={name!r}): expected one of {', '.join(BUILT_IN)}, or a folder or hub id with a config.json, "
            f"and found none ({str(error).strip().splitlines()[0]}). Check the spelling."
        ) from error
