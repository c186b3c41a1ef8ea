"""`trl-ext export`, in process: each form gives the same greedy answers."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import trl
from checkpoint_case import STEPS, make
from cli_case import refused
from jinja2 import TemplateError
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from trl_ext import LearnedReward
from trl_ext.cli import main
from trl_ext.cli.export_template import DATE, conversations, go_template
from trl_ext.trainer_kit.run_log import LOG

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
NOT_IN_GO = re.compile("qwen3|llama3_2|gptoss.*")  # thoughts, dates
IN_GO = ("gemma", "gemma3", "llama3", "qwen2_5", "phi3", "qwen3_instruct_2507")
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


def test_vllm_is_told_of_an_end_that_the_base_does_not_know(here, capsys):
    """By a generation config beside the adapter: the base's, with the token that closes a turn among its ends."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<pad>")
    tokenizer.save_pretrained("run")
    GenerationConfig(eos_token_id=1, top_k=7, do_sample=True).save_pretrained("base")
    for _ in range(2):  # its own file is no other's
        main(["export", "run", "--to", "vllm"])
        words = shlex.split(capsys.readouterr().out)
        assert words[words.index("--generation-config") + 1] == str(here / "run")
        written = GenerationConfig.from_pretrained("run")
        assert (written.eos_token_id, written.top_k) == ([1, 0], 7)
    GenerationConfig(eos_token_id=[1, 0]).save_pretrained("base")
    main(["export", "run", "--to", "vllm"])
    assert "--generation-config" not in capsys.readouterr().out


def test_ollama_has_room_for_a_long_prompt_and_the_runs_answers(here):
    AutoConfig.from_pretrained("base", max_position_embeddings=8192).save_pretrained("base")
    main(["export", "run", "--to", "ollama", "--output_dir", "without"])
    assert "PARAMETER num_ctx 4096\n" in Path("without/Modelfile").read_text()
    log = {"kind": "begin", "time": 0, "step": 0, "config": {"max_completion_length": 512}}
    Path("run", LOG).write_text(json.dumps(log) + "\n")
    for window, room in ((8192, 4608), (4200, 4200)):
        AutoConfig.from_pretrained("base", max_position_embeddings=window).save_pretrained("base")
        main(["export", "run", "--to", "ollama", "--output_dir", f"out{window}"])
        assert f"PARAMETER num_ctx {room}\n" in Path(f"out{window}/Modelfile").read_text()


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


@pytest.mark.parametrize("to", ["gguf", "ollama", "vllm"])
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
    output = [] if to == "vllm" else ["--output_dir", "x"]
    told = refused(capsys, "export", Path(file).parent.name, "--to", to, *output)
    assert f"expected a policy, and {why}" in told and not Path("x").exists()


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapter"])
def test_a_reward_model_becomes_a_sequence_classifier(lora, here, capsys):
    tiny_reward_model(byte_tokenizer()).save_pretrained("rm")
    byte_tokenizer().save_pretrained("rm")
    if lora:
        options = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj"], task_type="SEQ_CLS")
        model = get_peft_model(AutoModelForSequenceClassification.from_pretrained("rm"), options)
        model.save_pretrained("scorer")
        byte_tokenizer().save_pretrained("scorer")
    run, asked = ("scorer" if lora else "rm"), {"prompts": ["why?"], "completions": [" so"]}
    assert (
        "the base that it names" in refused(capsys, "export", run, "--output_dir", "x", "--load_in_8bit") or not lora
    )
    main(["export", run, "--output_dir", "plain"])
    told = capsys.readouterr().out
    assert "plain: a sequence classifier" in told and ("differ from the adapter's by at most" in told) == lora
    assert LearnedReward("plain")(**asked) == pytest.approx(LearnedReward(run)(**asked), abs=1e-5)
    assert AutoModelForSequenceClassification.from_pretrained("plain").config.num_labels == 1
    assert "The reward or value model" in Path("plain/README.md").read_text()


def test_of_a_run_that_was_stopped_the_newest_checkpoint_is_named(here, capsys):
    one = make("raft", here / "stopped")
    one.train()
    for file in (here / "stopped").glob("*.json"):
        assert file.name.startswith("trl_ext")  # nothing was saved but checkpoints
    told = refused(capsys, "export", "stopped", "--output_dir", "x")
    assert f"It holds checkpoints, as of a run that was stopped: give the newest, stopped/checkpoint-{STEPS}" in told
    main(["export", f"stopped/checkpoint-{STEPS}", "--output_dir", "x"])
    assert "trained with RAFT, a method introduced in" in Path("x/README.md").read_text()
    begun = json.loads((here / "stopped" / LOG).read_text().splitlines()[0])
    assert begun["kind"] == "begin" and begun["bits"] == 0


def log_bits(bits: int) -> None:
    Path("run", LOG).write_text(json.dumps({"kind": "begin", "time": 0, "step": 0, "bits": bits}) + "\n")


@pytest.mark.parametrize("bits", [8, 4])
def test_onto_what_an_adapter_of_a_quantised_base_is_merged(bits, here, capsys):
    log_bits(bits)
    main(["export", "run", "--output_dir", "plain"])
    told = capsys.readouterr().out
    assert f"trained on its base in {bits} bits, and is merged here onto the base's own weights" in told
    measured = re.search(
        rf"On 3 texts: (\S+) nats per token from the adapter on the base in {bits} bits, (\S+)% alike", told
    )
    assert measured and 1e-6 < float(measured[1]) < 1
    main(["export", "run", "--output_dir", "rounded", f"--load_in_{bits}bit"])
    assert "is merged here onto" not in capsys.readouterr().out
    assert f"the weights of its base in {bits} bits, dequantised" in Path("rounded/README.md").read_text()
    other = refused(capsys, "export", "run", "--output_dir", "x", f"--load_in_{12 - bits}bit")
    assert f"the base was loaded in {bits} bits" in other and not Path("x").exists()


def test_bits_of_which_the_log_says_that_there_were_none(here, capsys):
    log_bits(0)
    assert "the base was loaded as its checkpoint is" in refused(
        capsys, "export", "run", "--output_dir", "x", "--load_in_8bit"
    )


def test_a_card_says_of_what_it_was_made_and_how_that_was_trained(here, capsys):
    Path("run/README.md").write_text(
        "---\ntags:\n- generated_from_trainer\n---\nx\n## Training procedure\n\nwith PPO\n"
    )
    for run, out in (("run", "merged"), ("merged", "again")):
        main(["export", run, "--output_dir", out])
    card = Path("merged/README.md").read_text()
    assert (
        "The adapter `run`, merged into its base: on 3 texts" in card and "Its base is `base` (a local model)." in card
    )
    assert card.endswith("## Training procedure\n\nwith PPO\n") and str(here) not in card
    again = Path("again/README.md").read_text()
    assert "The policy of `merged`." in again and str(here) not in again + Path("again/trl_ext_merge.json").read_text()


def test_what_is_there_is_not_written_over_unless_it_was_made_of_the_same(here, capsys):
    Path("mine").mkdir()
    Path("mine/Modelfile").write_text("FROM me\n")
    assert "holds 'Modelfile', which this run did not write" in refused(
        capsys, "export", "run", "--to", "ollama", "--output_dir", "mine"
    )
    main(["export", "run", "--to", "ollama", "--output_dir", "out"])
    Path("out/model.gguf").write_text("of the weights before")
    assert "--output_dir out: 'out' holds what another run" in refused(capsys, "export", "base", "--output_dir", "out")
    assert Path("out/model.gguf").exists()
    main(["export", "run", "--output_dir", "out"])
    assert not Path("out/Modelfile").exists() and not Path("out/model.gguf").exists()


def test_how_ollama_samples_is_what_the_generation_config_says(here):
    config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.95, eos_token_id=1)
    config.save_pretrained("base")
    main(["export", "run", "--to", "ollama", "--output_dir", "out"])
    told = Path("out/Modelfile").read_text()
    assert "PARAMETER temperature 0.6\nPARAMETER top_p 0.95\n" in told and "PARAMETER repeat_penalty 1.0\n" in told


def test_a_template_that_ollama_cannot_write_is_refused_before_anything_is_written(here, capsys):
    for template, why in ((COUNTS, "does more than to write around"), (f"{{# {DATE} #}}" + CHATML, "today's date")):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained("run")
        told = refused(capsys, "export", "run", "--to", "ollama", "--output_dir", "out")
        assert why in told and "Give --to gguf" in told and not Path("out").exists()


def test_vllm_is_told_of_a_rank_that_it_knows_and_of_the_runs_own_template(here, capsys):
    config = json.loads(Path("run/adapter_config.json").read_text())
    Path("run/adapter_config.json").write_text(json.dumps(config | {"r": 12}))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    tokenizer.save_pretrained("run")
    main(["export", "run", "--to", "vllm"])
    words = shlex.split(capsys.readouterr().out)
    assert words[words.index("--max-lora-rank") + 1] == "16"
    assert words[words.index("--chat-template") + 1] == str(here / "run" / "chat_template.jinja")
    for more in ({"rank_pattern": {"q_proj": 8}}, {"r": 1024}):
        Path("run/adapter_config.json").write_text(json.dumps(config | more))
        assert "Give --to hf, and serve that" in refused(capsys, "export", "run", "--to", "vllm")


def test_vllm_is_given_what_is_there_or_may_be_at_the_hub(here, capsys):
    Path("empty").mkdir()
    for missing in ("nowhere", "empty", "../nowhere", "/nowhere/at/all"):
        assert "neither a config.json nor an adapter_config.json" in refused(capsys, "export", missing, "--to", "vllm")
    Path("run/adapter_config.json").write_text("{")
    assert "adapter_config.json cannot be read" in refused(capsys, "export", "run", "--to", "vllm")
    main(["export", "org/name", "--to", "vllm"])
    assert capsys.readouterr().out == "vllm serve org/name\n"


@pytest.mark.parametrize("missing", ["nowhere", "../nowhere", "run/nowhere"])
def test_a_base_that_is_not_there(missing, here, capsys):
    """Moved since the run, or misspelt; before anything is loaded or said of how to serve it."""
    for to in ("hf", "ollama"):
        told = refused(capsys, "export", "run", "--to", to, "--base", missing, "--output_dir", "out")
        assert f"error: --base {missing}: it cannot be loaded (" in told and "the run" not in told
    config = json.loads(Path("run/adapter_config.json").read_text())
    Path("run/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": missing}))
    told = refused(capsys, "export", "run", "--output_dir", "out")
    assert f"--run run: its base {missing}: it cannot be loaded (" in told and "Give --base" in told
    told = refused(capsys, "export", "run", "--to", "vllm")
    assert "its base" in told and "Write where it is now into run/adapter_config.json" in told
    scorer = config | {"base_model_name_or_path": missing, "task_type": "SEQ_CLS"}
    Path("run/adapter_config.json").write_text(json.dumps(scorer))
    assert "Write where it is now" in refused(capsys, "export", "run", "--output_dir", "out")
    assert not Path("out").exists()


def test_vllm_may_find_a_base_at_the_hub(here, capsys):
    config = json.loads(Path("run/adapter_config.json").read_text())
    Path("run/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/name"}))
    main(["export", "run", "--to", "vllm"])
    assert capsys.readouterr().out.startswith("vllm serve org/name --enable-lora")


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
    joins = "{{ range $i, $_ := .Messages }}"
    begin, _, loop = template.replace(joins, "{{ range .Messages }}").partition("{{ range .Messages }}")
    text = ""
    if begin and messages[0]["role"] != "system":
        text = begin.removeprefix("{{ if not .System }}").removesuffix("{{ end }}")
    body = loop.removesuffix("{{ end }}{{ end }}").removeprefix("{{ if ")
    parts = dict(branch.split('" }}', 1) for branch in body.split("{{ else if "))
    for i, message in enumerate(messages):
        unless = re.compile(r"\{\{ if not \(and \$\.System \(eq \$i 1\)\) \}\}(.*?)\{\{ end \}\}", re.DOTALL)
        first = messages[0]["role"] == "system" and i == 1
        branches = {test: unless.sub("" if first else r"\1", branch) for test, branch in parts.items()}
        text += branches[f'eq .Role "{message["role"]}'].replace("{{ .Content }}", message["content"])
    return text


def test_a_template_that_counts_has_no_go_form():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = COUNTS
    assert go_template(tokenizer) is None
    tokenizer.chat_template = None
    assert go_template(tokenizer) is None
