"""vLLM itself, on a CPU: samples of the policy with its adapter, by every road that leads to it.

Stage `.ci/run vllm`; skipped where vLLM is not installed. The models have heads of 64, which its CPU kernels take.
"""

import contextlib
import importlib.util
import json
import math
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import two_processes
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from ppo_case import PROMPTS, logged, ppo_trainer
from rollouts_case import grpo_trainer
from safetensors.torch import load_file
from self_training_case import trainer
from sharded_case import in_two
from sharded_raft_case import greedy as greedy_raft
from tiny import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_ext.cli import main
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.transformers_generator import TransformersGenerator
from trl_ext.generation.vllm_generator import VLLMGenerator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: .ci/run vllm"),
]
SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"num_hidden_layers": 2, "max_position_embeddings": 256}
CACHE_BLOCK = 16  # tokens
LONG = "It was the best of times, it was the worst of times, "  # several blocks of vLLM's prefix cache
PARTS = [Part(0, (0, 1), (LONG + "it was", LONG + "we had")), Part(1, (2, 3), ("say it", "why?"))]


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    model = tiny_llama(byte_tokenizer(), **SIZES)
    torch.manual_seed(0)
    model.lm_head.weight.data.normal_(std=0.2)  # far from uniform, so that the likeliest token is clear
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def adapted(base: Path, rank: int = 8, seed: int = 1) -> Policy:
    """The base with an adapter on all linear layers that changes what it says."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules="all-linear", init_lora_weights=False)
    return Policy(get_peft_model(model, config).eval(), byte_tokenizer())


def ask(generator, policy: Policy, parts=PARTS, **sampling) -> list[dict]:
    sampling = Sampling(**{"num_generations": 1, "max_completion_length": 16, "temperature": 0.0} | sampling)
    answers = dict((part.index, samples) for part, samples in generator.generate(parts, sampling, policy))
    return [sample for part in parts for sample in answers[part.index]]


def ids(samples: list[dict]) -> list[list[int]]:
    return [sample["completion_ids"] for sample in samples]


@pytest.fixture(scope="module")
def generator():
    """One vLLM for all tests that can share it."""
    one = vllm()
    one.expect(SIZES["max_position_embeddings"])
    yield one
    one.close()


def vllm(**options) -> VLLMGenerator:
    return VLLMGenerator(**{"dtype": "float32", "engine_kwargs": {"enforce_eager": True}} | options)


@pytest.mark.parametrize("rank", [8, 16])
def test_greedy_is_our_own_samplers(base, generator, rank):
    policy = adapted(base, rank)
    ours = ask(TransformersGenerator(), policy)
    assert ids(ask(generator, policy)) == ids(ours)
    with policy.model.disable_adapter():
        assert ids(ask(TransformersGenerator(), policy)) != ids(ours)


def test_each_grow_has_the_adapter_as_it_is_then(base):
    """Of one vLLM, which keeps the prompts' keys and values: five blocks of them are the same in both."""
    policy, generator = adapted(base), vllm()
    assert len(policy.prompt_ids(PARTS[0].prompts[0])) > 3 * CACHE_BLOCK
    before = ids(ask(generator, policy))
    first = generator._process
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.neg_()
    after = ids(ask(generator, policy))
    assert after == ids(ask(TransformersGenerator(), policy)) and after != before
    assert generator._process is first
    assert [path.name for path in first.folder.glob("policy-*")] == ["policy-2"]
    ask(generator, policy, max_completion_length=80)  # a larger window than it was started with
    assert generator._process is not first
    generator.close()


@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"top_p": 0.8, "temperature": 1.3}, {"top_k": 5}])
def test_log_probs_are_those_that_the_tokens_were_drawn_with(base, generator, settings):
    policy = adapted(base)
    policy.model.generation_config.eos_token_id = [1, *range(10, 20)]
    samples = ask(generator, policy, num_generations=4, **{"temperature": 1.0} | settings)
    assert {sample["ended"] for sample in samples} == {True, False}
    for sample in samples:
        assert len(sample["log_probs"]) == len(sample["completion_ids"])
        torch.testing.assert_close(
            torch.tensor(sample["log_probs"]), drawn_with(policy.model, sample, settings), atol=1e-3, rtol=0
        )


@torch.no_grad()
def drawn_with(model, sample: dict, settings: dict) -> torch.Tensor:
    """Our own log-probabilities of a completion at that temperature, among the tokens that were left."""
    prompt, chosen = sample["prompt_ids"], torch.tensor(sample["completion_ids"])
    logits = model(torch.tensor([prompt + sample["completion_ids"]])).logits[0, len(prompt) - 1 : -1]
    logits = logits.float() / settings.get("temperature", 1.0)
    ranked, order = logits.sort(descending=True)
    before = ranked.softmax(-1).cumsum(-1) - ranked.softmax(-1)  # joint share of the likelier ones
    rank = torch.arange(logits.size(-1)).expand_as(ranked)
    out = (before >= settings.get("top_p", 1.0)) | (rank >= settings.get("top_k", logits.size(-1)))
    kept = torch.full_like(logits, -math.inf).scatter(1, order, ranked.masked_fill(out, -math.inf))
    return kept.log_softmax(-1).gather(1, chosen[:, None])[:, 0]


def test_a_policy_without_adapter_is_served_whole(base):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    model.model.layers[0].mlp.down_proj.weight.data.mul_(3.0)  # trained, so no longer what its path names
    policy = Policy(model, byte_tokenizer())
    assert ids(ask(vllm(), policy)) == ids(ask(TransformersGenerator(), policy))


def test_first_tokens_have_the_policys_distribution(base, generator):
    """χ² of 2000 samples over the tokens that are expected at least 10 times, the rest as one; at most its 99.9 % quantile."""
    policy, count = adapted(base), 2000
    samples = ask(
        generator,
        policy,
        [Part(0, (0,), ("say it",))],
        num_generations=count,
        max_completion_length=1,
        temperature=1.0,
    )
    with torch.no_grad():
        logits = policy.model(torch.tensor([policy.prompt_ids("say it")])).logits[0, -1]
    expected = logits.softmax(-1).double() * count
    seen = torch.bincount(torch.tensor([sample["completion_ids"][0] for sample in samples]), minlength=len(expected))
    often = expected >= 10
    cells = [torch.cat([values[often].double(), values[~often].sum().double()[None]]) for values in (seen, expected)]
    statistic, degrees = ((cells[0] - cells[1]) ** 2 / cells[1]).sum().item(), int(often.sum())
    assert degrees > 5 and statistic < degrees + 3.09 * math.sqrt(2 * degrees) + 6


def test_ends_and_stop_tokens(base, generator):
    policy = adapted(base)
    policy.model.generation_config.eos_token_id = [1, *range(10, 20)]
    samples = ask(generator, policy, num_generations=16, temperature=1.0)
    ends = policy.end_token_ids()
    assert {sample["ended"] for sample in samples} == {True, False}
    for sample in samples:
        assert sample["ended"] == (sample["completion_ids"][-1] in ends)
        assert sample["ended"] or len(sample["completion_ids"]) == 16
        assert not ends & set(sample["completion_ids"][:-1])


@pytest.mark.skipif(importlib.util.find_spec("vllm_bnb_plugin") is None, reason="needs vllm-bnb-plugin==0.0.3")
def test_a_base_in_4_bits_is_the_training_base(tmp_path):
    """NF4 of the same blocks, doubly quantised from the same numbers, is far nearer to it than its own 16 bits are.

    The plugin serves 16 bits only, and quantises what the file holds: a checkpoint in 32 bits, which training loads in 16,
    would be rounded otherwise here and there.
    """
    torch.manual_seed(0)
    model = tiny_llama(byte_tokenizer(), **SIZES)
    model.lm_head.weight.data.normal_(std=0.2)
    model.half().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float16"
    )
    config = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)

    def with_adapter(**options):
        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16, **options)
        return get_peft_model(base, config).eval()

    policy, unrounded = Policy(with_adapter(quantization_config=nf4), byte_tokenizer()), with_adapter()
    generator = vllm(dtype="float16", engine_kwargs={"enforce_eager": True, "quantization": "bitsandbytes"})
    samples = ask(generator, policy, num_generations=16, temperature=1.0)
    greedy = [ids(ask(one, policy)) for one in (generator, TransformersGenerator())]
    generator.close()
    theirs = torch.cat([torch.tensor(sample["log_probs"]) for sample in samples])
    ours, whole = (torch.cat([drawn_with(m, sample, {}) for sample in samples]) for m in (policy.model, unrounded))
    near, far = (theirs - ours).abs().mean().item(), (whole - ours).abs().mean().item()
    print(
        f"NF4 in vLLM to NF4 in training: {near:.4f} nats per token, to 16 bits: {far:.4f}; greedy: {greedy[0] == greedy[1]}"
    )
    assert near < 0.05 * far


def test_same_seeds_same_samples(base, generator):
    policy = adapted(base)
    once, again = (ids(ask(generator, policy, num_generations=4, temperature=1.0, seed=3)) for _ in range(2))
    assert once == again and len({tuple(sample) for sample in once}) > 4


def test_the_command(base, tmp_path):
    policy = adapted(base)
    policy.model.save_pretrained(tmp_path / "adapter")
    rows = [{"prompt": prompt} for part in PARTS for prompt in part.prompts]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["generate", "--model", str(tmp_path / "adapter"), "--prompts", str(tmp_path / "prompts.jsonl")]
    words += ["--output", str(tmp_path / "samples.parquet"), "--num-generations", "1", "--temperature", "0"]
    words += ["--max-completion-length", "16", "--generator", "vllm"]
    with contextlib.suppress(SystemExit):
        main(words)
    written = load_dataset("parquet", data_files=str(tmp_path / "samples.parquet"), split="train")
    assert written["completion_ids"][:] == ids(ask(TransformersGenerator(), policy))
    assert set(written["generator"]) == {"vllm"}


# What `trl-ext export` writes and prints


@pytest.fixture
def exported(base, tmp_path, capsys):
    """A run's adapter; the words of the printed line; the merged model; what policy and transformers answer."""
    policy, run, merged = adapted(base), tmp_path / "run", tmp_path / "merged"
    policy.model.save_pretrained(run)
    policy.tokenizer.save_pretrained(run)
    main(["export", str(run), "--to", "vllm", "--name", "kind"])
    line = shlex.split(capsys.readouterr().out)
    main(["export", str(run), "--to", "hf", "--output_dir", str(merged)])
    prompts = [policy.prompt_ids(text) for text in ("say it", "why?", LONG)]
    plain = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    answers = [greedy(policy.model, prompt) for prompt in prompts]
    assert [greedy(plain, prompt) for prompt in prompts] == answers
    assert answers != [greedy(AutoModelForCausalLM.from_pretrained(base).eval(), prompt) for prompt in prompts]
    return line, merged, prompts, answers


def greedy(model, prompt: list[int]) -> list[int]:
    written = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, pad_token_id=0)
    return written[0, len(prompt) :].tolist()


def test_both_exports_answer_as_the_policy_does(exported):
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    line, merged, prompts, answers = exported
    name, adapter = line[-1].split("=", 1)
    sampling = SamplingParams(temperature=0.0, max_tokens=16)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    for model, options, request in (
        (line[2], {"enable_lora": True, "max_lora_rank": 8}, {"lora_request": LoRARequest(name, 1, adapter)}),
        (str(merged), {}, {}),
    ):
        engine = LLM(model, dtype="float32", enforce_eager=True, max_model_len=256, **options)
        said = engine.generate(asked, sampling, **request)
        assert [list(one.outputs[0].token_ids) for one in said] == answers
        engine.llm_engine.engine_core.shutdown()


def test_the_printed_line_serves_the_adapter(exported, tmp_path):
    line, _, prompts, answers = exported
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("vllm")), *line[1:], "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    named = os.environ | {"PYTHONPATH": os.pathsep.join([named_vllm(tmp_path), os.environ.get("PYTHONPATH", "")])}
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, env=named) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
            said = [completion(port, prompt) for prompt in prompts]
        finally:
            server.terminate()
    assert said == answers


def test_an_end_that_the_base_does_not_know_ends_answers(exported, tmp_path, capsys):
    """Told by the generation config that export leaves beside the adapter; by --override-generation-config it would not be."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    line, _, prompts, answers = exported
    name, adapter = line[-1].split("=", 1)
    turn = next(i for i in answers[0][4:] if i not in answers[0][:4])
    tokenizer = byte_tokenizer()
    letter = tokenizer.convert_ids_to_tokens(turn)
    tokenizer.add_special_tokens({"additional_special_tokens": [letter]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] + '" + tokenizer.decode(turn) + "' }}{% endfor %}"
    )
    tokenizer.save_pretrained(adapter)
    main(["export", adapter, "--to", "vllm", "--name", name])
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    told = {"generation_config": words[words.index("--generation-config") + 1]}
    engine = LLM(
        words[2], dtype="float32", enforce_eager=True, max_model_len=256, enable_lora=True, max_lora_rank=8, **told
    )
    asked = [{"prompt_token_ids": prompts[0]}]
    sampling = SamplingParams(temperature=0.0, max_tokens=16)
    (said,) = engine.generate(asked, sampling, lora_request=LoRARequest(name, 1, adapter))
    assert list(said.outputs[0].token_ids) == answers[0][: answers[0].index(turn) + 1]
    engine.llm_engine.engine_core.shutdown()


def named_vllm(folder: Path) -> str:
    """A folder by which `vllm` finds itself installed under that name, which the package for CPUs has not."""
    told = folder / "vllm-0+cpu.dist-info" / "METADATA"
    told.parent.mkdir()
    told.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n")
    return str(folder)


def wait_for(url: str, server: subprocess.Popen, log: Path, seconds: int = 900) -> None:
    for _ in range(seconds):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        assert server.poll() is None, log.read_text()[-3000:]
        time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


def completion(port: int, prompt: list[int]) -> list[int]:
    """The tokens that the adapter writes, by OpenAI's protocol."""
    asked = {"model": "kind", "prompt": prompt, "max_tokens": 16, "temperature": 0.0, "return_token_ids": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["token_ids"]


class DiesAfter(VLLMGenerator):
    """vLLM of a run that is killed after some parts of its second Grow."""

    grows = 0

    def generate(self, parts, sampling, policy):
        type(self).grows += 1
        for number, answer in enumerate(super().generate(parts, sampling, policy)):
            if self.grows == 2 and number == 1:
                raise KeyboardInterrupt
            yield answer


def test_raft_killed_within_a_grow_and_resumed(base, tmp_path):
    """It goes on with the parts that are there, and ends where the run without a kill does."""

    def run(folder, generator, **options):
        one = trainer(
            folder, model=adapted(base).model, prompts=[prompt for part in PARTS for prompt in part.prompts],
            prompts_per_part=1, num_generations=2, max_completion_length=8, save_strategy="epoch", generator=generator,
        )  # fmt: skip
        one.train(**options)
        return {name: p.detach().clone() for name, p in one.model.named_parameters() if p.requires_grad}

    options = {"dtype": "float32", "engine_kwargs": {"enforce_eager": True}, "prompts_at_once": 1}
    whole = run(tmp_path / "whole", VLLMGenerator(**options))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", DiesAfter(**options))
    assert (tmp_path / "killed" / "grow-000.parquet").is_file()
    resumed = run(tmp_path / "killed", VLLMGenerator(**options), resume_from_checkpoint=True)
    for name, parameter in whole.items():
        torch.testing.assert_close(resumed[name], parameter, rtol=0, atol=0)


def test_raft_of_a_policy_that_fsdp2_cuts(base, tmp_path, monkeypatch):
    """Each process's vLLM is sent the whole adapter, of each stage: it samples as one process does itself.

    Two that start side by side take more than the usual five minutes where others use the cores, too.
    """
    monkeypatch.setattr(two_processes, "PATIENCE", 1200)
    one = greedy_raft(tmp_path / "one", TransformersGenerator(), base=str(base))
    options = {"case": "sharded_raft_case", "base": str(base), "patience": 1140}
    assert in_two(tmp_path / "two", "by_vllm", **options).keys() == one.keys()
    both = load_file(tmp_path / "two" / "process-1.safetensors")
    assert all(torch.equal(both[name], one[name]) for name in one)


LEARNS = {
    "per_device_train_batch_size": 64,
    "num_iterations": 4,
    "max_steps": 48,  # twelve rollouts
    "max_completion_length": 8,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "constant",
}


def fresh_adapter() -> LoraConfig:
    return LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_learns_from_its_samples(base, tmp_path, seed):
    one = ppo_trainer(
        tmp_path, model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), peft_config=fresh_adapter(),
        prompts=PROMPTS * 4, beta=0.0, seed=seed, generator=vllm(), **LEARNS,
    )  # fmt: skip
    one.train()
    scores = logged(one, "score")
    assert len(scores) == 12 and scores[-1] > scores[0] + 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_learns_from_its_samples(base, tmp_path, seed):
    one = grpo_trainer(
        tmp_path, vllm(), model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), peft_config=fresh_adapter(),
        num_generations=8, seed=seed, **LEARNS,
    )  # fmt: skip
    one.train()
    rewards = logged(one, "reward")
    assert len(rewards) == 12 and rewards[-1] > rewards[0] + 1
