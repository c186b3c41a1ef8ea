"""llama.cpp itself: what `trl-ext export --to gguf` makes of an adapter writes as the policy does.

Skipped where its converter or a runner is missing: LLAMA_CPP is a checkout, as in the sources of llama-cpp-python (vendor/);
pip install xllamacpp gguf sentencepiece.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from trl_ext.cli import main
from trl_ext.cli.export_serving import CONVERTER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp"),
    pytest.mark.skipif(not Path(os.environ.get("LLAMA_CPP", ""), CONVERTER).is_file(), reason="needs LLAMA_CPP"),
]
ASCII = range(3 + 1, 3 + 128)  # the bytes' tokens
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Of the kind that llama.cpp knows from Llama 2: bytes where it has no word."""
    vocab = {
        token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"])
    }
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


@pytest.fixture
def run(tmp_path) -> Path:
    tokenizer = llama_tokenizer()
    model = tiny_llama(tokenizer, **SIZES)
    torch.manual_seed(0)
    model.lm_head.weight.data.normal_(std=0.3)  # far from uniform, so that 16 bits do not decide
    model.lm_head.weight.data[[*range(ASCII.start), *range(ASCII.stop, len(tokenizer))]] = (
        0.0  # it holds back half letters
    )
    for folder in ("base", "run"):
        tokenizer.save_pretrained(tmp_path / folder)
    model.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    options = LoraConfig(
        r=4, lora_alpha=8, init_lora_weights=False, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    get_peft_model(model, options).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_its_next_tokens_are_the_policys(run, tmp_path):
    """To the 16 bits in which it reckons; where the policy's likeliest token is clearly so, it is llama.cpp's."""
    import xllamacpp

    to = ["--output_dir", str(tmp_path / "out"), "--dtype", "bfloat16"]  # which the converter keeps
    main(["export", str(run), "--to", "gguf", *to])
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(tmp_path / "out" / "model.gguf"), 256, 1
    params.cpuparams.n_threads, params.warmup = 1, False
    server, tokenizer, clear = xllamacpp.Server(params), llama_tokenizer(), 0
    policy, base = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).eval() for name in ("out", "base")
    )
    for text in ("say it", "why?", "it was the best of times", "go on", "who?", "and then"):
        prompt = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        said = server.handle_completions({"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 5})
        said = json.loads(said) if isinstance(said, str) else said
        found = {
            entry["id"]: entry["logprob"] for entry in said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        }
        assert len(found) == 5 and apart(found, policy, prompt) < 0.1 < apart(found, base, prompt)
        likeliest = next_token(policy, prompt).topk(2)
        if likeliest.values[0] - likeliest.values[1] > 0.1:
            clear += 1
            assert max(found, key=found.get) == likeliest.indices[0]
    assert clear >= 3


@torch.no_grad()
def next_token(model, prompt: list[int]) -> torch.Tensor:
    return model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)


def apart(found: dict[int, float], model, prompt: list[int]) -> float:
    """The largest difference of log-probabilities."""
    own = next_token(model, prompt)
    return max(abs(own[token].item() - value) for token, value in found.items())
