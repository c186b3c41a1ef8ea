"""The models of a run, as a command names them: a base in fewer bits is loaded once, and every role is an adapter on it."""

from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel
from transformers import TrainingArguments
from trl import get_peft_config

from trl_ext.cli.command_arguments import ModelArguments
from trl_ext.shared_base.shared_base import SharedBase
from trl_ext.trainer_kit.saved_adapters import is_adapter, same_base

MODEL = "--model_name_or_path"


def base_and_adapter(model: ModelArguments) -> tuple[str, str | None]:
    """Path or hub id of the base, and of the adapter where one is named."""
    name = model.model_name_or_path
    if name is None:
        raise ValueError(
            f"{MODEL}: expected a causal language model, or an adapter of one. Give a hub id or a folder."
        )
    if not is_adapter(name):
        return name, None
    base = PeftConfig.from_pretrained(name).base_model_name_or_path
    if not base:
        raise ValueError(f"{MODEL} {name}: the adapter names no base. Write its path into adapter_config.json.")
    return base, name


def lora_of(model: ModelArguments) -> LoraConfig | None:
    """Of a new adapter, where one is asked for. A saved one has its own settings."""
    adapter = base_and_adapter(model)[1]
    if adapter is not None and model.use_peft:
        raise ValueError(
            f"{MODEL} {adapter} with use_peft: it is an adapter, which is trained on. Leave use_peft out."
        )
    if model.bits and adapter is None:
        model.use_peft = True  # a quantised base is frozen
    return get_peft_config(model)


@dataclass
class Roles:
    """What a command's trainer is made of.

    Args:
        model: What is named, and how it is loaded.
        args: The trainer's config; gets how the model is loaded, where TRL loads it.
    """

    model: ModelArguments
    args: TrainingArguments

    def __post_init__(self):
        self.lora, self.base = lora_of(self.model), None
        name, self.adapter = base_and_adapter(self.model)
        if self.model.bits:
            options = {"revision": self.model.model_revision, "attn_implementation": self.model.attn_implementation}
            options = {key: value for key, value in options.items() if value not in (None, "main")}
            self.base = SharedBase.from_pretrained(name, bits=self.model.bits, dtype=self.model.dtype, **options)
        else:
            self.args.model_init_kwargs = load_options(self.model) | (self.args.model_init_kwargs or {})

    def policy(self) -> dict[str, Any]:
        """Arguments of a trainer of policies."""
        if self.base is None:
            return {"model": self.model.model_name_or_path, "peft_config": self.lora}
        role = self.base.policy(self.lora) if self.adapter is None else self.base.policy(init_from=self.adapter)
        return {"model": role, "processing_class": self.base.tokenizer}

    def scorer(self) -> dict[str, Any]:
        """Arguments of a trainer of reward models."""
        if self.base is None:
            return {"model": self.model.model_name_or_path, "peft_config": self.lora and _scoring(self.lora)}
        role = self.base.reward_model(self.adapter or _scoring(self.lora)).module
        head = {"imitation_head": self.base.model.get_output_embeddings()} if self.args.imitation_coef else {}
        return {"model": role, "processing_class": self.base.tokenizer} | head

    def rewards(self, rewards: list[object]) -> list[object]:
        """As trainers take them; an adapter of the shared base becomes a role on it."""
        return [self._on_base(reward) for reward in rewards]

    def value_model(self, name: str | None) -> str | PeftModel | None:
        """A value model that begins as what is named."""
        if name is None or self.base is None or not is_adapter(name):
            return name
        return self.base.value_model(init_from=name)

    def _on_base(self, reward: object) -> object:
        if self.base is None or not isinstance(reward, str) or not is_adapter(reward):
            return reward
        made_for = PeftConfig.from_pretrained(reward).base_model_name_or_path
        return self.base.reward_model(reward) if same_base(made_for, self.base.name) else reward


def load_options(model: ModelArguments) -> dict[str, Any]:
    """What `from_pretrained` is told; nothing of what is left at its default."""
    options = {
        "dtype": model.dtype,
        "revision": None if model.model_revision == "main" else model.model_revision,
        "attn_implementation": model.attn_implementation,
    }
    return {name: value for name, value in options.items() if value is not None}


def _scoring(lora: LoraConfig) -> LoraConfig:
    lora.task_type = "SEQ_CLS"
    return lora


def planned_model(model: ModelArguments, args: TrainingArguments, *, card: bool) -> dict[str, Any]:
    """What the plan is told of it, by the names of `memory_plan`'s arguments.

    Args:
        model: What is named.
        args: The trainer's config.
        card: Whether to plan for a card that is not at hand, where the config was made for a CPU.
    """
    lora, adapter = lora_of(model), base_and_adapter(model)[1]
    rank = PeftConfig.from_pretrained(adapter).r if adapter else lora and lora.r
    on_card = card or args.device.type == "cuda"
    dtype = model.dtype or ("bfloat16" if model.bits and on_card else "float32")
    return {
        "bits": model.bits,
        "dtype": dtype,
        "lora": rank,
        "autocast": dtype == "float32" and bool(args.bf16 or args.fp16 or (card and args.use_cpu)),
        "shared": model.bits is not None,
    } | ({"device": "cuda"} if card else {})
