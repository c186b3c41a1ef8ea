"""vLLM's process, with a stand-in that loads nothing and says a prompt's own ids: started, reused, crashed, ended."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from tiny import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM

from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.vllm_generator import VLLMGenerator
from trl_ext.generation.vllm_process import VLLMError, VLLMProcess

PARTS = [Part(0, (4, 2), ("say it", "why?")), Part(1, (7,), ("go",)), Part(3, (9,), ("yes",))]
GREEDY = Sampling(num_generations=1, max_completion_length=5, temperature=0.0)
STAND_IN = """
import json, os
from dataclasses import dataclass
from types import SimpleNamespace

LoRARequest = lambda name, number, path: SimpleNamespace(lora_name=name, lora_int_id=number, lora_path=path)
SamplingParams = lambda **params: SimpleNamespace(**params)


class LLM:
    def __init__(self, model, **args):
        if "warp" in args:
            raise TypeError("EngineArgs.__init__() got an unexpected keyword argument 'warp'")
        self.args, self.llm_engine = args, self

    def add_lora(self, request):
        with open(os.path.join(request.lora_path, "adapter_config.json")) as file:
            assert json.load(file)["r"] <= self.args["max_lora_rank"]

    def remove_lora(self, number):
        pass

    def generate(self, prompts, params, use_tqdm, lora_request):
        left = int(open(os.environ["STAND_IN_DIES"]).read())  # its deaths at a prompt of three tokens
        if left and any(len(prompt["prompt_token_ids"]) == 3 for prompt in prompts):
            open(os.environ["STAND_IN_DIES"], "w").write(str(left - 1))
            raise RuntimeError("CUDA out of memory, says the stand-in")
        said = [prompt["prompt_token_ids"][: one.max_tokens] for prompt, one in zip(prompts, params)]
        rest = {"index": 0, "finish_reason": "length", "stop_reason": None, "logprobs": None}
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, **rest)]) for ids in said]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the stand-in and a base model are."""
    folder = tmp_path_factory.mktemp("vllm")
    package, info = folder / "stand_in" / "vllm", folder / "stand_in" / "vllm-0.31.0.dist-info"
    (package / "lora").mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text(STAND_IN)
    (package / "lora" / "__init__.py").touch()
    (package / "lora" / "request.py").write_text("from vllm import LoRARequest\n")
    (info / "METADATA").write_text("Name: vllm\nVersion: 0.31.0\n")
    tiny_llama(byte_tokenizer()).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    return folder


@pytest.fixture
def adapted(folder) -> Policy:
    model = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    return Policy(get_peft_model(model, LoraConfig(r=9, target_modules=["q_proj"])), byte_tokenizer())


@pytest.fixture
def process(folder, monkeypatch, tmp_path):
    """Makes generators whose vLLM is the stand-in, in a process of its own, which dies as often as it is told."""
    monkeypatch.syspath_prepend(str(folder / "stand_in"))
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'stand_in'}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("STAND_IN_DIES", str(tmp_path / "deaths"))
    (tmp_path / "work").mkdir()

    def make(deaths=0, **options):
        (tmp_path / "deaths").write_text(str(deaths))
        return VLLMGenerator(prompts_at_once=1, work_dir=tmp_path / "work", **options)

    return make


def ask(policy, generator) -> list[dict]:
    return [sample for _, samples in generator.generate(PARTS, GREEDY, policy) for sample in samples]


def echoed(samples) -> bool:
    """Whether the completions are the stand-in's."""
    return all(sample["completion_ids"] == sample["prompt_ids"][:5] for sample in samples)


def running(generator) -> int:
    """The number of the process that runs."""
    return generator._process._children[-1].pid


def gone(pid: int, seconds: float = 20) -> bool:
    """Whether a process that is not waited for here, or has been, ends within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_process_of_its_own_whose_vllm_dies_twice(process, adapted, tmp_path):
    """What was finished before comes first, then an error with vLLM's own words; nothing is left behind."""
    answers = process(deaths=2).generate(PARTS, GREEDY, adapted)
    for part in PARTS[:2]:
        came, samples = next(answers)
        assert came == part
        assert echoed(samples)
    with pytest.raises(RuntimeError, match=r"(?s)ended with code 1 and left 1 of 3 parts.*out of memory, says the"):
        next(answers)
    assert not list((tmp_path / "work").iterdir())


def test_one_process_for_all_calls_which_is_started_anew_when_it_dies(process, adapted, tmp_path):
    generator = process(deaths=1)
    first = ask(adapted, generator)  # in which it died once
    assert echoed(first) and len(first) == 4
    one = running(generator)
    assert ask(adapted, generator) == first and running(generator) == one
    [folder] = (tmp_path / "work").iterdir()
    assert [path.name for path in folder.glob("policy-*")] == ["policy-2"]
    os.kill(one, signal.SIGKILL)  # between the calls
    assert ask(adapted, generator) == first and running(generator) != one
    copy = pickle.loads(pickle.dumps(generator))
    assert copy._process is None and deepcopy(generator)._process is None
    last = running(generator)
    del generator
    gc.collect()
    assert gone(last) and not list((tmp_path / "work").iterdir())
    assert ask(adapted, copy) == first
    copy.close()
    assert not list((tmp_path / "work").iterdir())


def test_the_adapter_before_is_removed_also_when_vllm_dies_as_it_is_sent_the_next(
    process, adapted, tmp_path, monkeypatch
):
    generator = process()
    first = ask(adapted, generator)

    def dies(vllm):
        os.kill(running(generator), signal.SIGKILL)
        return True

    monkeypatch.setattr(VLLMProcess, "wakes", dies)
    assert ask(adapted, generator) == first
    assert [path.name for path in (tmp_path / "work").glob("*/policy-*")] == ["policy-2"]
    generator.close()


def test_a_call_that_nobody_reads_to_its_end(process, adapted, tmp_path):
    generator = process()
    answers = generator.generate(PARTS, GREEDY, adapted)
    next(answers)
    with pytest.raises(ValueError, match=r"VLLMGenerator.generate: the call before has not been read to its end"):
        next(generator.generate(PARTS, GREEDY, adapted))
    left = running(generator)
    answers.close()
    assert gone(left) and not list((tmp_path / "work").iterdir())
    assert len(ask(adapted, generator)) == 4
    generator.close()


def test_an_adapter_that_vllm_refuses_is_not_tried_again(process, adapted, starts):
    generator = process(engine_kwargs={"max_lora_rank": 8})
    with pytest.raises(VLLMError, match=r"(?s)ended with code 4 and left 3 of 3 parts.*AssertionError"):
        ask(adapted, generator)
    assert starts == [1]


@pytest.fixture
def starts(monkeypatch) -> list:
    """One for each time that vLLM is started."""
    starts, start = [], VLLMProcess._start
    monkeypatch.setattr(VLLMProcess, "_start", lambda self: (starts.append(1), start(self)))
    return starts


def test_a_base_that_vllm_loads_but_cannot_run_is_not_tried_again(process, adapted, starts):
    generator, parts = process(deaths=9), [Part(0, (7,), ("yes",))]  # dies at this prompt
    with pytest.raises(
        VLLMError, match=r"(?s)ended with code 1 and left 1 of 1 parts\. Put right what .*CUDA out of m"
    ) as error:
        list(generator.generate(parts, GREEDY, adapted))
    assert starts == [1] and "are kept" not in str(error.value)


def test_a_base_that_vllm_cannot_load(process, adapted, starts, tmp_path):
    with pytest.raises(
        VLLMError, match=r"(?s)code 4 and could not be started with \{'model'.*unexpected keyword.*'warp'"
    ):
        ask(adapted, process(engine_kwargs={"warp": 9}))
    assert starts == [1]
    assert not list((tmp_path / "work").iterdir())


KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
from trl_ext.generation.vllm_process import VLLMProcess
process = VLLMProcess({"model": "any"}, dict(os.environ), Path(tempfile.mkdtemp(dir=sys.argv[1])))
print(process._children[-1].pid, flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["kill", "regular"])
def test_vllm_ends_with_its_parent(process, tmp_path, end):
    process()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "work"), end]
    parent = subprocess.run(command, capture_output=True, text=True)
    assert parent.stdout, parent.stderr
    assert gone(int(parent.stdout)) and not list((tmp_path / "work").iterdir())
    assert parent.returncode == (-signal.SIGKILL if end == "kill" else 0)
