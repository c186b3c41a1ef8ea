"""`trl-ext export`, in process: each form gives the same greedy answers."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import trl
from cli_case import refused
from jinja2 import TemplateError
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext.cli import main
from trl_ext.cli.export_template import conversations, go_template

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{{ '[' + m['role'] + ']' + m['content'] + '[/]' }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<s>You help.</s>{% endif %}{% for m in messages %}"
    "{{ '<' + m['role'][0] + '>' + m['content'] + '</' + m['role'][0] + '>' }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
UPSTREAM = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
NOT_IN_GO = re.compile("gemma3.*|qwen3|llama3_2|gptoss.*")  # a system message in the user's turn, thoughts, dates
IN_GO = ("gemma", "llama3", "qwen2_5", "phi3", "qwen3_instruct_2507")
COUNTS = "{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}"


def greedy(model, tokenizer, prompt: str) -> list[int]:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    return model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.size(1) :].tolist()


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    base = tiny_llama(tokenizer)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_merged_model_answers_as_the_adapter_does(here, capsys):
    main(["export", "run", "--to", "hf", "--output_dir", "merged"])
    told = capsys.readouterr().out
    assert "merged: " in told and "merged: a transformers model" in told
    tokenizer = AutoTokenizer.from_pretrained("merged")
    whole = AutoModelForCausalLM.from_pretrained("merged")
    attached = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "run")
    for prompt in ("say it", "why?", "go on"):
        assert greedy(whole, tokenizer, prompt) == greedy(attached, tokenizer, prompt)
    assert tokenizer.chat_template == CHATML and Path("merged/generation_config.json").exists()
    main(["export", "merged", "--output_dir", "again", "--dtype", "bfloat16"])
    assert AutoModelForCausalLM.from_pretrained("again", dtype="auto").dtype == torch.bfloat16


def test_for_ollama(here, capsys):
    main(["export", "run", "--to", "ollama", "--output_dir", "out"])
    told = Path("out/Modelfile").read_text()
    eos = byte_tokenizer().eos_token
    assert told.startswith('FROM .\nTEMPLATE """') and f'PARAMETER stop "{eos}"' in told
    assert '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n' in told
    assert "ollama create NAME -f out/Modelfile" in capsys.readouterr().out


def test_for_vllm(here, capsys):
    main(["export", "run", "--to", "vllm", "--name", "kind"])
    words = shlex.split(capsys.readouterr().out)
    assert words[:3] == ["vllm", "serve", str(here / "base")] and words[-1] == f"kind={here / 'run'}"
    assert words[words.index("--max-lora-rank") + 1] == "8"
    main(["export", "base", "--to", "vllm"])
    assert capsys.readouterr().out == "vllm serve base\n"


def test_for_llama_cpp(here, capsys, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", "")
    command = ["export", "run", "--to", "gguf", "--output_dir", "out"]
    assert "git clone https://github.com/ggml-org/llama.cpp" in refused(capsys, *command)
    assert not Path("out").exists()
    script = here / "convert_hf_to_gguf.py"
    monkeypatch.setenv("LLAMA_CPP", str(here))
    script.write_text("import sys\nsys.exit('Model architecture is not supported')\n")
    assert "said: Model architecture is not supported" in refused(capsys, *command)
    script.write_text("import sys\nopen(sys.argv[sys.argv.index('--outfile') + 1], 'w').write(sys.argv[1])\n")
    main(command)
    assert Path("out/model.gguf").read_text() == "out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--run: expected"),
        (["run", "--to", "onnx"], "expected one of hf, gguf, ollama, vllm"),
        (["run"], "expected the folder to write"),
        (["run", "--to", "vllm", "--output_dir", "x"], "leave it out"),
        (["base", "--output_dir", "x", "--load_in_8bit"], "the run is a whole model"),
        (["run", "--to", "vllm", "--base", "base"], "vLLM loads the base itself"),
        (["run", "--output_dir", "x", "--name", "y"], "only an adapter under vLLM"),
        (["nowhere", "--output_dir", "x"], "nowhere"),
        (["run", "--output_dir", "base"], "base"),
        (["run", "--output_dir", "x", "--load_in_8bit", "--load_in_4bit"], "one of them"),
    ],
)
def test_what_is_refused(options, message, here, capsys):
    assert message in refused(capsys, "export", *options)


@pytest.mark.parametrize("to", ["hf", "vllm"])
@pytest.mark.parametrize(
    ("file", "changed", "why"),
    [
        ("run/adapter_config.json", {"task_type": "SEQ_CLS"}, "its task_type is SEQ_CLS"),
        ("base/config.json", {"architectures": ["XForSequenceClassification"]}, "it is a XForSequenceClassification"),
    ],
)
def test_a_reward_model_is_no_policy(to, file, changed, why, here, capsys):
    config = json.loads(Path(file).read_text())
    Path(file).write_text(json.dumps(config | changed))
    output = ["--output_dir", "x"] if to == "hf" else []
    told = refused(capsys, "export", Path(file).parent.name, "--to", to, *output)
    assert f"expected a policy, and {why}" in told and not Path("x").exists()


def test_vllm_is_given_what_is_there_or_may_be_at_the_hub(here, capsys):
    Path("empty").mkdir()
    for missing in ("nowhere", "empty", "../nowhere", "/nowhere/at/all"):
        assert "neither a config.json nor an adapter_config.json" in refused(capsys, "export", missing, "--to", "vllm")
    Path("run/adapter_config.json").write_text("{")
    assert "adapter_config.json cannot be read" in refused(capsys, "export", "run", "--to", "vllm")
    main(["export", "org/name", "--to", "vllm"])
    assert capsys.readouterr().out == "vllm serve org/name\n"


def test_what_vllm_would_serve_without(here, capsys):
    config = json.loads(Path("run/adapter_config.json").read_text())
    Path("run/adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    assert "Give --to hf" in refused(capsys, "export", "run", "--to", "vllm")


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM, DEFAULT_SYSTEM])
def test_templates_that_write_around_messages(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    found = go_template(tokenizer)
    has_system = template != NO_SYSTEM
    assert found is not None and ('"system"' in found) == has_system
    for messages in conversations(with_system=has_system):
        written = as_go_writes(found, messages)
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert written == expected.removeprefix(tokenizer.bos_token or "")


@pytest.mark.parametrize("file", UPSTREAM, ids=lambda file: file.stem)
def test_upstream_templates_are_written_alike_or_not_at_all(file):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = file.read_text()
    found = go_template(tokenizer)
    assert found is None or not NOT_IN_GO.fullmatch(file.stem)
    assert found is not None or file.stem not in IN_GO
    for messages in conversations(with_system=True) if found else []:
        try:
            expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError:
            assert messages[0]["role"] == "system" and '"system"' not in found
            continue
        assert as_go_writes(found, messages) == expected.removeprefix(tokenizer.bos_token or "")


@pytest.mark.parametrize(
    "added", ["{% if 0 %}{{ strftime_now('%Y') }}{% endif %}", "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"]
)  # fmt: skip
def test_a_template_with_a_date_or_that_drops_the_system_message_has_no_go_form(added):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = added + CHATML
    assert go_template(tokenizer) is None


def as_go_writes(template: str, messages: list[dict]) -> str:
    """A small reader of the Go templates that are made here: conditions on .System and .Role, a range, .Content."""
    begin, _, loop = template.partition("{{ range .Messages }}")
    text = ""
    if begin and messages[0]["role"] != "system":
        text = begin.removeprefix("{{ if not .System }}").removesuffix("{{ end }}")
    body = loop.removesuffix("{{ end }}{{ end }}").removeprefix("{{ if ")
    branches = dict(branch.split('" }}', 1) for branch in body.split("{{ else if "))
    for message in messages:
        text += branches[f'eq .Role "{message["role"]}'].replace("{{ .Content }}", message["content"])
    return text


def test_a_template_that_counts_has_no_go_form():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = COUNTS
    assert go_template(tokenizer) is None
    tokenizer.chat_template = None
    assert go_template(tokenizer) is None
