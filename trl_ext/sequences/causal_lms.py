"""A causal LM that is asked something: loaded, and told apart from others."""

import os
from zlib import crc32

from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from trl_ext.sequences.tokenizers import tokenizer_fingerprint
from trl_ext.trainer_kit.device import default_device
from trl_ext.trainer_kit.fingerprints import adapter_settings, weights_fingerprint
from trl_ext.trainer_kit.loading import loading, quiet_loading

Model = PreTrainedModel | PeftModel


def causal_lm(model: Model | str | os.PathLike, *, call: str) -> tuple[Model, str]:
    """A model, and where its tokenizer may be; `call` says who asks."""
    if isinstance(model, Model):
        return model, model.config._name_or_path
    if not isinstance(model, str | os.PathLike):
        raise ValueError(
            f"{call}(model={type(model).__name__}): expected a causal LM, or the path or hub id of one. Give one."
        )
    path = os.path.expanduser(os.fspath(model))
    with loading(f"{call}({path!r})"), quiet_loading():
        return AutoModelForCausalLM.from_pretrained(path).to(default_device()), path


def model_key(model: Model, tokenizer: PreTrainedTokenizerBase) -> int:
    """By the weights and adapters as they are now, wherever they were loaded from, and by how they are asked."""
    read = tokenizer_fingerprint(tokenizer), tokenizer.chat_template
    adapters = adapter_settings(model), getattr(model, "active_adapters", None)
    return crc32(repr((weights_fingerprint(model), adapters, read)).encode())
