"""vLLM's route, through a stand-in module that has vLLM's signatures and refusals and samples with transformers."""

import importlib.util
import json
import os
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from resized_case import grown_adapter
from tiny import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM

from trl_ext.generation import vllm_generator, vllm_process, vllm_worker
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.vllm_generator import VLLMGenerator
from trl_ext.trainer_kit.seeds import stable_seed

STAND_IN = """
import os
from dataclasses import dataclass, field
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm.lora.request import LoRARequest

ENGINE_ARGS = {"max_model_len", "enable_lora", "max_lora_rank", "max_num_seqs"}  # further ones that LLM passes on
log = []


@dataclass(kw_only=True)
class SamplingParams:
    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    detokenize: bool = True

    def __post_init__(self):
        assert 0 <= self.min_p <= 1 and 0 < self.top_p <= 1 and self.top_k >= -1 and self.temperature >= 0
        if self.temperature == 0 and self.n > 1:
            raise ValueError(f"n must be 1 when using greedy sampling, got {self.n}.")


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class RequestOutput:
    def __init__(self, request_id, prompt, prompt_token_ids, prompt_logprobs, outputs, finished):
        self.prompt_token_ids, self.outputs, self.finished = prompt_token_ids, outputs, finished


class LLM:
    def __init__(self, model: str, *, tokenizer=None, tensor_parallel_size=1, dtype="auto",
                 gpu_memory_utilization=0.9, **kwargs):
        if not set(kwargs) <= ENGINE_ARGS:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {set(kwargs) - ENGINE_ARGS}")
        assert kwargs.get("max_lora_rank", 16) in (1, 8, 16, 32, 64, 128, 256, 320, 512)
        self.args = {"model": model, "dtype": dtype, "gpu_memory_utilization": gpu_memory_utilization} | kwargs
        self.model = AutoModelForCausalLM.from_pretrained(model).eval()
        self.eos = AutoTokenizer.from_pretrained(tokenizer or model).eos_token_id
        self.calls = []
        log.append(self)

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None):
        if os.environ.get("STAND_IN_DIES_AT") == str(len(self.calls)):
            raise RuntimeError("CUDA out of memory, says the stand-in")
        self.calls.append((prompts, sampling_params, lora_request))
        if lora_request is not None:
            assert isinstance(lora_request, LoRARequest) and lora_request.lora_int_id > 0 and self.args["enable_lora"]
            if not isinstance(self.model, PeftModel):
                self.model = PeftModel.from_pretrained(self.model, lora_request.lora_path).eval()
            assert self.model.peft_config["default"].r <= self.args["max_lora_rank"]
        return [self.answer(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling_params, strict=True)]

    def answer(self, ids, params):
        assert len(ids) + params.max_tokens <= self.args["max_model_len"]
        outputs = [self.sample(ids, params, i) for i in range(params.n)]
        return RequestOutput("0", None, ids, None, outputs[::-1], True)

    @torch.no_grad()
    def sample(self, ids, params, index):
        generator, done, reason, stop = torch.Generator().manual_seed(params.seed + index), [], "length", None
        while len(done) < params.max_tokens and reason == "length":
            logits = self.model(torch.tensor([[*ids, *done]])).logits[0, -1]
            greedy = params.temperature == 0
            p = None if greedy else (logits / params.temperature).softmax(-1)
            done.append(int(logits.argmax() if greedy else torch.multinomial(p, 1, generator=generator)))
            if done[-1] == self.eos or done[-1] in (params.stop_token_ids or []):
                reason, stop = "stop", None if done[-1] == self.eos else done[-1]
        return CompletionOutput(index, "", done, None, None, reason, stop)
"""
LORA = """
from dataclasses import dataclass

@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str
"""
PARTS = [Part(0, (4, 2), ("say it", "why?")), Part(1, (7,), ("go",)), Part(3, (9,), ("yes",))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the stand-in and a base model are."""
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "stand_in" / "vllm" / "lora").mkdir(parents=True)
    (folder / "stand_in" / "vllm" / "__init__.py").write_text(STAND_IN)
    (folder / "stand_in" / "vllm" / "lora" / "__init__.py").write_text("")
    (folder / "stand_in" / "vllm" / "lora" / "request.py").write_text(LORA)
    tiny_llama(byte_tokenizer()).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    return folder


@pytest.fixture
def base(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    model.generation_config.eos_token_id = [1, *range(10, 60)]  # so that about a fifth of the tokens end
    return model


@pytest.fixture
def adapted(base):
    """A policy with an adapter that changes what it says, and another one beside it."""
    torch.manual_seed(1)
    options = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "lora_alpha": 64}
    model = get_peft_model(base, LoraConfig(r=9, **options))
    model.add_adapter("ref", LoraConfig(r=2, **options))
    return Policy(model, byte_tokenizer())


@pytest.fixture
def stand_in(folder, monkeypatch):
    """The worker in this process, with the stand-in as vllm; the module is what the tests look into."""
    monkeypatch.syspath_prepend(str(folder / "stand_in"))
    for name in ("vllm", "vllm.lora", "vllm.lora.request"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    @contextmanager
    def here(folder, variables):
        vllm_worker.main(str(folder / "spec.json"))
        yield SimpleNamespace(poll=lambda: 0, returncode=0)

    monkeypatch.setattr(vllm_generator, "worker", here)
    yield importlib.import_module("vllm")
    for name in ("vllm", "vllm.lora", "vllm.lora.request"):
        sys.modules.pop(name, None)


def ask(policy, generator=None, parts=PARTS, **sampling):
    sampling = Sampling(**{"num_generations": 3, "max_completion_length": 5} | sampling)
    answers = list((generator or VLLMGenerator()).generate(parts, sampling, policy))
    assert [part for part, _ in answers] == parts
    return [sample for _, samples in answers for sample in samples]


def greedy(model, prompt, length=5):
    ids = byte_tokenizer()(prompt, return_tensors="pt")
    out = model.generate(**ids, do_sample=False, max_new_tokens=length, pad_token_id=0)
    return out[0, ids["input_ids"].shape[1] :].tolist()


def test_greedy_is_what_the_policy_with_its_adapter_says(stand_in, adapted):
    samples = ask(adapted, temperature=0.0)
    for sample in samples:
        assert sample["completion_ids"] == greedy(adapted.model, sample["prompt"])
    with adapted.model.disable_adapter():
        assert any(s["completion_ids"] != greedy(adapted.model, s["prompt"]) for s in samples)
    assert [s["sample"] for s in samples] == [0, 1, 2] * 4  # vLLM gives one at temperature 0


def test_the_engine_gets_base_and_adapter_unmerged(stand_in, adapted, folder):
    ask(adapted, VLLMGenerator(dtype="bfloat16", gpu_memory_utilization=0.5, engine_kwargs={"max_num_seqs": 7}))
    [llm] = stand_in.log
    assert llm.args == {
        "model": str(folder / "base"),
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.5,
        "max_model_len": len("say it") + 5,
        "max_num_seqs": 7,
        "enable_lora": True,
        "max_lora_rank": 16,  # the next that vLLM takes above 9
    }


def test_auto_is_the_checkpoints_precision(stand_in, adapted, base, tmp_path):
    """vLLM's own "auto" serves a checkpoint of 32 bits in 16."""
    ask(adapted)
    ask(Policy(base.to(torch.bfloat16), byte_tokenizer()))
    assert [llm.args["dtype"] for llm in stand_in.log] == ["float32", "bfloat16"]


def test_settings_reach_every_prompt(stand_in, adapted):
    ask(adapted, temperature=0.7, top_p=0.9, top_k=40, min_p=0.01, repetition_penalty=1.1, seed=5)
    [(prompts, params, adapter)] = stand_in.log[0].calls
    assert [p["prompt_token_ids"] for p in prompts] == [
        byte_tokenizer()(text)["input_ids"] for part in PARTS for text in part.prompts
    ]
    assert [p.seed for p in params] == [stable_seed(5, row) for row in (4, 2, 7, 9)]
    assert adapter.lora_int_id == 1
    expected = {"n": 3, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1}
    expected |= {"max_tokens": 5, "stop_token_ids": [1, *range(10, 60)]}
    assert {name: vars(params[0])[name] for name in expected} == expected


def test_samples_in_order_with_ids_texts_and_ends(stand_in, adapted):
    samples = ask(adapted, max_completion_length=4, seed=1)
    assert [(s["row"], s["sample"]) for s in samples] == [(row, i) for row in (4, 2, 7, 9) for i in range(3)]
    ends = adapted.end_token_ids()
    for sample in samples:
        assert sample["ended"] == (sample["completion_ids"][-1] in ends)
        assert sample["ended"] or len(sample["completion_ids"]) == 4
        assert not ends & set(sample["completion_ids"][:-1])
        assert sample["completion"] == adapted.completion_texts([""], [sample["completion_ids"]])[0]
        assert sample["prompt_ids"] == byte_tokenizer()(sample["prompt"])["input_ids"]
        assert (sample["generator"], sample["seed"]) == ("vllm", stable_seed(1, sample["row"]))
    assert {s["ended"] for s in samples} == {True, False}
    assert len({tuple(s["completion_ids"]) for s in samples}) > 6


def test_small_parts_are_sampled_together_and_the_same_as_apart(stand_in, adapted):
    apart = ask(adapted, VLLMGenerator(prompts_at_once=1))
    assert [len(prompts) for prompts, *_ in stand_in.log[0].calls] == [2, 1, 1]
    assert ask(adapted, VLLMGenerator(prompts_at_once=3)) == apart
    assert [len(prompts) for prompts, *_ in stand_in.log[1].calls] == [3, 1]


def test_messages(stand_in, adapted):
    chat = [{"role": "user", "content": "hi"}]
    samples = ask(adapted, parts=[Part(0, (0,), (chat,))])
    assert samples[0]["prompt_ids"] == byte_tokenizer()("u:hi\na:")["input_ids"]
    assert samples[0]["completion"][0]["role"] == "assistant"


def test_another_active_adapter(stand_in, adapted):
    adapted.model.set_adapter("ref")
    samples = ask(adapted, temperature=0.0)
    assert [s["completion_ids"] for s in samples] == [greedy(adapted.model, s["prompt"]) for s in samples]
    assert stand_in.log[0].args["max_lora_rank"] == 8


@pytest.mark.parametrize("kind", ["frozen", "saved", "trained tokens"])
def test_an_adapter_with_embeddings_of_its_own(tmp_path, kind):
    """They would be left out, and the base's sampled instead."""
    _, model = grown_adapter(tmp_path, kind, "CAUSAL_LM", tied=False)
    with pytest.raises(
        ValueError, match=r"VLLMGenerator: the policy's adapter holds 'base_model\..*' beside its LoRA"
    ):
        ask(Policy(model, byte_tokenizer()))


def test_a_policy_without_adapter_is_served_whole(stand_in, base):
    base.lm_head.weight.data = base.lm_head.weight.data.flip(0)  # trained, so no longer what its id names
    samples = ask(Policy(base, byte_tokenizer()), temperature=0.0)
    assert [s["completion_ids"] for s in samples] == [greedy(base, s["prompt"]) for s in samples]
    assert "enable_lora" not in stand_in.log[0].args and stand_in.log[0].calls[0][2] is None
    with pytest.raises(ValueError, match=r"model='other'.*no adapter.*Leave model at None"):
        ask(Policy(base, byte_tokenizer()), VLLMGenerator("other"))


def test_another_tokenizer_is_refused(stand_in, adapted, tmp_path):
    adapted.tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=r"generator with another tokenizer.*engine_kwargs=\{'tokenizer'"):
        ask(adapted)
    assert not stand_in.log  # nothing was loaded for it
    adapted.tokenizer.save_pretrained(tmp_path)  # the remedy
    assert ask(adapted, VLLMGenerator(engine_kwargs={"tokenizer": str(tmp_path)}))


def test_a_base_without_a_name(stand_in):
    model = get_peft_model(tiny_llama(byte_tokenizer()), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"model=None.*no id or path.*Give model"):
        ask(Policy(model, byte_tokenizer()))
    with pytest.raises(ValueError, match="has no model"):
        ask(Policy(None, byte_tokenizer()))


def test_the_policy_is_off_the_card_just_as_long(stand_in, adapted, monkeypatch):
    steps = []

    @contextmanager
    def off(model):
        steps.append("off")
        try:
            yield
        finally:
            steps.append("on")

    monkeypatch.setattr(vllm_generator, "off_the_card", off)
    answers = VLLMGenerator().generate(PARTS, Sampling(num_generations=1, max_completion_length=2), adapted)
    next(answers)
    assert steps == ["off"]
    answers.close()  # as when whoever asked for the parts fails
    assert steps == ["off", "on"]


@pytest.mark.parametrize(
    ("ids", "stop_reason", "whole"),
    [
        ([5, 1], None, [5, 1]),  # vLLM leaves the end token, its own eos
        ([5, 12], 12, [5, 12]),  # and other stop tokens
        ([5, 99], 99, [5, 99]),  # one that only the served model's generation config names
        ([5], None, [5, 1]),  # should it be cut off
        ([], 12, [12]),
    ],
)
def test_the_end_token_is_last(ids, stop_reason, whole):
    spec = {"end_token_ids": [1, 12], "sampling": {"num_generations": 1}}
    output = SimpleNamespace(index=0, token_ids=ids, finish_reason="stop", stop_reason=stop_reason)
    assert vllm_worker.completions(SimpleNamespace(outputs=[output]), spec) == [(whole, True)]


def test_what_was_cut_has_no_end_token():
    spec = {"end_token_ids": [1], "sampling": {"num_generations": 1}}
    output = SimpleNamespace(index=0, token_ids=(5, 6), finish_reason="length", stop_reason=None)
    assert vllm_worker.completions(SimpleNamespace(outputs=[output]), spec) == [([5, 6], False)]


def test_the_worker_ends_when_its_parent_is_gone():
    codes, (ours, parents) = [], os.pipe()
    waiting = threading.Thread(target=vllm_worker.end_with_parent, args=(ours, codes.append))
    waiting.start()
    waiting.join(0.05)
    assert not codes
    os.close(parents)  # as the system does when the parent is killed
    waiting.join(5)
    assert codes == [vllm_worker.PARENT_IS_GONE]
    os.close(ours)


def test_the_workers_environment(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    card = torch.device("cuda", 1)
    alone = vllm_process.environment(card, {"engine": {}})
    assert alone["CUDA_VISIBLE_DEVICES"] == "6" and "LOCAL_RANK" not in alone
    assert vllm_process.environment(card, {"engine": {"tensor_parallel_size": 2}})["CUDA_VISIBLE_DEVICES"] == "4,6"
    assert vllm_process.environment(torch.device("cpu"), {"engine": {}})["CUDA_VISIBLE_DEVICES"] == "4,6"


def test_without_vllm(stand_in, adapted, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r'pip install "trl-ext\[vllm\]"'):
        ask(adapted)


@pytest.mark.slow
def test_a_process_of_its_own_whose_vllm_dies(folder, adapted, monkeypatch, tmp_path):
    """What was finished before comes first, then an error with vLLM's own words; nothing is left behind."""
    monkeypatch.setenv("PYTHONPATH", str(folder / "stand_in"))
    monkeypatch.setenv("STAND_IN_DIES_AT", "2")
    generator = VLLMGenerator(prompts_at_once=1, work_dir=tmp_path)
    answers = generator.generate(PARTS, Sampling(num_generations=1, max_completion_length=5, temperature=0.0), adapted)
    for part in PARTS[:2]:
        came, samples = next(answers)
        assert came == part
        assert [s["completion_ids"] for s in samples] == [greedy(adapted.model, s["prompt"]) for s in samples]
    with pytest.raises(RuntimeError, match=r"(?s)ended with code 1 and left 1 of 3 parts.*out of memory, says the"):
        next(answers)
    assert not list(tmp_path.iterdir())


def test_settings():
    settings = VLLMGenerator("m", dtype="float16", max_model_len=99, engine_kwargs={"max_num_seqs": 4}).settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["model"] == "m" and settings["engine_kwargs"] == {"max_num_seqs": 4}
    with pytest.raises(ValueError, match=r"gpu_memory_utilization=1.5"):
        VLLMGenerator(gpu_memory_utilization=1.5)
    with pytest.raises(ValueError, match=r"engine_kwargs=.*as JSON.*dtype is not JSON"):
        VLLMGenerator(engine_kwargs={"kv_cache_dtype": torch.bfloat16})


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")
def test_the_real_vllm(tmp_path):
    """On a base of sizes that its kernels take."""
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 128, "intermediate_size": 256, "torch_dtype": "bfloat16"}
    tiny_llama(tokenizer, **sizes).bfloat16().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16).cuda()
    model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    policy = Policy(model.eval(), tokenizer)
    generator = VLLMGenerator(gpu_memory_utilization=0.3, engine_kwargs={"enforce_eager": True})
    samples = ask(policy, generator, num_generations=4)
    assert [(s["row"], s["sample"]) for s in samples] == [(row, i) for row in (4, 2, 7, 9) for i in range(4)]
    assert all(s["ended"] == (s["completion_ids"][-1] == 1) for s in samples)
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}


def test_messages_of_a_role_that_the_template_does_not_know():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    part = Part(0, (7,), ([{"role": "human", "content": "Why?"}],))
    with pytest.raises(ValueError, match=r"VLLMGenerator.generate: the chat template writes nothing .* row 7 asks"):
        next(VLLMGenerator().generate([part], Sampling(), Policy(tiny_llama(tokenizer), tokenizer)))
