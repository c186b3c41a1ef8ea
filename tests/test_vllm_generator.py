"""vLLM's route, through a stand-in module that has vLLM's signatures and refusals and samples with transformers."""

import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from resized_case import grown_adapter
from tiny import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM

from trl_ext.generation import card_turns, vllm_answers, vllm_generator, vllm_process, vllm_worker
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.vllm_generator import VLLMGenerator
from trl_ext.trainer_kit.seeds import stable_seed

STAND_IN = """
import os
from dataclasses import dataclass, field
from types import SimpleNamespace
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm.lora.request import LoRARequest

ENGINE_ARGS = {"max_model_len", "enable_lora", "max_lora_rank", "max_num_seqs", "logprobs_mode",
               "kv_cache_memory_bytes", "enable_sleep_mode"}  # further ones that LLM passes on
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
    logprobs: int | None = None

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
        self.model = self.base = AutoModelForCausalLM.from_pretrained(model).eval()
        self.eos = AutoTokenizer.from_pretrained(tokenizer or model).eos_token_id
        self.calls, self.loras, self.naps, self.llm_engine = [], {}, [], self
        log.append(self)

    def sleep(self, level=1):
        self.naps.append(f"sleep {level}")

    def wake_up(self, tags=None):
        self.naps.append("wake")

    def add_lora(self, request):
        assert isinstance(request, LoRARequest) and request.lora_int_id > 0 and self.args["enable_lora"]
        assert request.lora_int_id not in self.loras and os.path.isdir(request.lora_path)
        name = request.lora_name
        if isinstance(self.model, PeftModel):
            self.model.load_adapter(request.lora_path, name)
        else:
            self.model = PeftModel.from_pretrained(self.model, request.lora_path, name).eval()
        assert self.model.peft_config[name].r <= self.args["max_lora_rank"]
        self.loras[request.lora_int_id] = request
        return True

    def remove_lora(self, lora_id):
        self.model.delete_adapter(self.loras.pop(lora_id).lora_name)
        return True

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None):
        self.calls.append((prompts, sampling_params, lora_request))
        if lora_request is not None:
            assert self.loras[lora_request.lora_int_id] == lora_request
            self.model.set_adapter(lora_request.lora_name)
        return [self.answer(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling_params, strict=True)]

    def answer(self, ids, params):
        assert len(ids) + params.max_tokens <= self.args["max_model_len"]
        outputs = [self.sample(ids, params, i) for i in range(params.n)]
        return RequestOutput("0", None, ids, None, outputs[::-1], True)

    @torch.no_grad()
    def sample(self, ids, params, index):
        generator, done, reason, stop = torch.Generator().manual_seed(params.seed + index), [], "length", None
        logprobs = None if params.logprobs is None else []
        assert logprobs is None or self.args["logprobs_mode"] == "processed_logprobs"
        while len(done) < params.max_tokens and reason == "length":
            logits = self.model(torch.tensor([[*ids, *done]])).logits[0, -1]
            greedy = params.temperature == 0
            p = None if greedy else (logits / params.temperature).softmax(-1)
            done.append(int(logits.argmax() if greedy else torch.multinomial(p, 1, generator=generator)))
            if logprobs is not None:
                logprobs.append({done[-1]: SimpleNamespace(logprob=p[done[-1]].log().item())})
            if done[-1] == self.eos or done[-1] in (params.stop_token_ids or []):
                reason, stop = "stop", None if done[-1] == self.eos else done[-1]
        return CompletionOutput(index, "", done, None, logprobs, reason, stop)
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
    (folder / "stand_in" / "vllm-0.31.0.dist-info").mkdir()
    (folder / "stand_in" / "vllm-0.31.0.dist-info" / "METADATA").write_text("Name: vllm\nVersion: 0.31.0\n")
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
def stand_in(folder, monkeypatch, tmp_path_factory):
    """The worker in this process, with the stand-in as vllm; the module is what the tests look into."""
    monkeypatch.syspath_prepend(str(folder / "stand_in"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("work")))
    for name in ("vllm", "vllm.lora", "vllm.lora.request"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    started = []

    class Here:
        """vLLM's process in this one, which says what it is told in JSON."""

        is_alive, is_busy = True, False

        def __init__(self, engine, variables, folder):
            started.append(self)
            self.engine, self.folder = engine, folder
            self.vllm = vllm_worker.Engine(json.loads(json.dumps(engine)))

        serves = vllm_process.VLLMProcess.serves

        def ask(self, request):
            request = json.loads(json.dumps(request))
            self.vllm.take(request["adapter"])
            yield from json.loads(json.dumps(list(self.vllm.parts(request))))

        def wakes(self):
            return True

        def sleep(self):
            pass

        def close(self):
            self.is_alive = False
            shutil.rmtree(self.folder)

    monkeypatch.setattr(vllm_generator, "VLLMProcess", Here)
    yield importlib.import_module("vllm")
    for process in started:
        if process.is_alive:
            process.close()  # what the real one does when it is collected
    assert not list(Path(tempfile.gettempdir()).glob("trl-ext-vllm-*"))
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
        "max_model_len": 16,  # 6 + 5, rounded up
        "logprobs_mode": "processed_logprobs",
        "max_num_seqs": 7,
        "enable_lora": True,
        "max_lora_rank": 16,  # the next that vLLM takes above 9
    }


def test_bytes_of_keys_and_values_take_the_place_of_the_share(folder, monkeypatch):
    """vLLM would not start unless the share were free as well, and beside an optimizer nine tenths of a card are not."""
    card = SimpleNamespace(model=SimpleNamespace(device=torch.device("cuda", 1)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    engine = VLLMGenerator(kv_cache_memory_bytes=20 * 2**30)._engine(card, str(folder / "base"))
    assert (engine["kv_cache_memory_bytes"], engine["gpu_memory_utilization"]) == (20 * 2**30, 0.25)
    assert VLLMGenerator()._engine(card, str(folder / "base"))["gpu_memory_utilization"] == 0.9
    with pytest.raises(ValueError, match=rf"kv_cache_memory_bytes={2**40}\): the card has {80 * 2**30} bytes in all"):
        VLLMGenerator(kv_cache_memory_bytes=2**40)._engine(card, str(folder / "base"))
    with pytest.raises(ValueError, match=r"does nothing beside `kv_cache_memory_bytes`: that says how much"):
        VLLMGenerator(kv_cache_memory_bytes=2**30, gpu_memory_utilization=0.5)


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
    assert (adapter.lora_int_id, adapter.lora_name) == (1, "policy-1")
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


def test_log_probs_are_those_that_the_tokens_were_drawn_with(stand_in, adapted):
    for sample in ask(adapted, temperature=0.7):
        prompt, ids = sample["prompt_ids"], sample["completion_ids"]
        with torch.no_grad():
            logits = adapted.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(sample["log_probs"]), expected)
    assert {sample["log_probs"] for sample in ask(adapted, temperature=0.0)} == {None}  # nothing is drawn


def test_each_call_sends_a_new_adapter_to_the_same_vllm(stand_in, adapted):
    """Of a new number, name and folder, since what vLLM keeps of a prompt it keeps under these."""
    generator, says = VLLMGenerator(), []
    for _ in range(2):
        samples = ask(adapted, generator, temperature=0.0)
        assert [s["completion_ids"] for s in samples] == [greedy(adapted.model, s["prompt"]) for s in samples]
        says.append([s["completion_ids"] for s in samples])
        with torch.no_grad():
            for name, parameter in adapted.model.named_parameters():
                if "lora_B" in name:
                    parameter.neg_()
    assert says[0] != says[1]
    [llm] = stand_in.log
    sent = [adapter for *_, adapter in llm.calls]
    assert (
        len({a.lora_int_id for a in sent}) == len({a.lora_name for a in sent}) == len({a.lora_path for a in sent}) == 2
    )
    assert llm.loras == {2: sent[1]} and [Path(a.lora_path).exists() for a in sent] == [False, True]


def test_vllm_is_started_anew_where_more_must_fit(stand_in, adapted):
    generator = VLLMGenerator()
    lengths = []
    for length in (5, 9, 12, 40, 3):
        ask(adapted, generator, parts=[Part(0, (0,), ("say it",))], max_completion_length=length)
        lengths.append(stand_in.log[-1].args["max_model_len"])
    assert lengths == [16, 16, 32, 64, 64] and len(stand_in.log) == 3
    adapted.model.add_adapter("wide", LoraConfig(r=20, target_modules=["q_proj"], init_lora_weights=False))
    adapted.model.set_adapter("wide")
    ask(adapted, generator)
    assert stand_in.log[-1].args["max_lora_rank"] == 32 and len(stand_in.log) == 4
    expecting = VLLMGenerator()
    expecting.expect(100)
    ask(adapted, expecting)
    assert stand_in.log[-1].args["max_model_len"] == 128


def test_a_base_that_changes_between_calls(stand_in, adapted):
    """The adapter is merged into it, say, and vLLM would add it to the base of before."""
    generator = VLLMGenerator()
    ask(adapted, generator)
    adapted.model.merge_adapter()
    with pytest.raises(ValueError, match="base is another in memory than in that file"):
        ask(adapted, generator)
    adapted.model.unmerge_adapter()
    assert ask(adapted, generator) and len(stand_in.log) == 1


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

    monkeypatch.setattr(card_turns, "off_the_card", off)
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
    """And a log-probability that nobody knows is none, of no token of the sample."""
    request = {"end_token_ids": [1, 12], "sampling": {"num_generations": 1}}
    logprobs = [{token: SimpleNamespace(logprob=-token / 10)} for token in ids]
    output = SimpleNamespace(index=0, token_ids=ids, finish_reason="stop", stop_reason=stop_reason, logprobs=logprobs)
    log_probs = [-token / 10 for token in ids] if ids == whole else None
    assert vllm_answers.completions(SimpleNamespace(outputs=[output]), request) == [(whole, True, log_probs)]


def test_what_was_cut_has_no_end_token():
    request = {"end_token_ids": [1], "sampling": {"num_generations": 1}}
    output = SimpleNamespace(index=0, token_ids=(5, 6), finish_reason="length", stop_reason=None, logprobs=None)
    assert vllm_answers.completions(SimpleNamespace(outputs=[output]), request) == [([5, 6], False, None)]


def test_the_worker_ends_when_its_parent_is_gone(tmp_path):
    """And takes its folder along, which nobody else would remove after a kill."""
    taken, codes, (ours, parents) = [], [], os.pipe()
    (tmp_path / "its own").mkdir()
    listening = (ours, taken.append, tmp_path / "its own", codes.append)
    waiting = threading.Thread(target=vllm_worker.listen, args=listening)
    waiting.start()
    os.write(parents, b'{"do": "sleep"}\n{"do": ')
    os.write(parents, b'"wake"}\n')
    waiting.join(0.05)
    assert not codes
    os.close(parents)  # as the system does when the parent is killed
    waiting.join(5)
    assert codes == [vllm_worker.PARENT_IS_GONE] and taken == [{"do": "sleep"}, {"do": "wake"}]
    assert not list(tmp_path.iterdir())
    os.close(ours)


def test_the_workers_environment(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    card = torch.device("cuda", 1)
    alone = vllm_process.environment(card, {})
    assert alone["CUDA_VISIBLE_DEVICES"] == "6" and not {"LOCAL_RANK", "PYTORCH_CUDA_ALLOC_CONF"} & set(alone)
    assert vllm_process.environment(card, {"tensor_parallel_size": 2})["CUDA_VISIBLE_DEVICES"] == "4,6"
    assert vllm_process.environment(torch.device("cpu"), {})["CUDA_VISIBLE_DEVICES"] == "4,6"


def test_without_vllm(stand_in, adapted, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r'VLLMGenerator: vLLM is not installed. pip install "trl-ext\[vllm\]"'):
        ask(adapted)


def test_settings():
    settings = VLLMGenerator("m", dtype="float16", max_model_len=99, engine_kwargs={"max_num_seqs": 4}).settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["model"] == "m" and settings["engine_kwargs"] == {"max_num_seqs": 4}
    with pytest.raises(ValueError, match=r"gpu_memory_utilization=1.5"):
        VLLMGenerator(gpu_memory_utilization=1.5)
    with pytest.raises(ValueError, match=r"engine_kwargs=.*as JSON.*dtype is not JSON"):
        VLLMGenerator(engine_kwargs={"kv_cache_dtype": torch.bfloat16})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine_kwargs": {"max_model_len": 9}},
            r"'max_model_len' has an argument of its own. Give VLLMGenerator\(max_model_len",
        ),
        ({"engine_kwargs": {"model": "other"}}, r"Give VLLMGenerator\(model="),
        ({"engine_kwargs": {"dtype": "half"}}, r"Give VLLMGenerator\(dtype="),
        ({"engine_kwargs": {"gpu_memory_utilization": 0.5}}, r"Give VLLMGenerator\(gpu_memory_utilization="),
        ({"engine_kwargs": {"kv_cache_memory_bytes": 9}}, r"Give VLLMGenerator\(kv_cache_memory_bytes="),
        ({"engine_kwargs": {"enable_lora": False}}, r"'enable_lora' follows from the policy"),
        ({"engine_kwargs": [1]}, r"engine_kwargs=\[1\]\): expected a dictionary of arguments of vllm.LLM, got list"),
        ({"engine_kwargs": []}, r"expected a dictionary"),
        (
            {"dtype": "bf16"},
            r"VLLMGenerator\(dtype='bf16'\): choose one of 'auto', 'half', 'float16', 'bfloat16', 'float' or 'float32'",
        ),
        (
            {"work_dir": "nowhere/at/all"},
            r"VLLMGenerator\(work_dir='nowhere/at/all'\): expected a folder that is there",
        ),
        ({"work_dir": 5}, r"VLLMGenerator\(work_dir=5\): expected a folder"),
    ],
)
def test_arguments_that_contradict_or_are_not_vllms(options, message):
    with pytest.raises(ValueError, match=message):
        VLLMGenerator(**options)


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
