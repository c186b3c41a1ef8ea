"""examples/MIGRATION.md: every right side is run, in its table's order, with a test's sizes."""

import functools
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from shared_case import SIZES, quiet
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import AutoModelForCausalLM

import trl_ext
from trl_ext import RAFTTrainer, SharedBase
from trl_ext.cli import main

TEXT = (Path(__file__).parents[1] / "examples" / "MIGRATION.md").read_text(encoding="utf-8")
SECTIONS = {title: body for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)}
SAMPLED = {"max_completion_length": 8, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
FACTORY = "LLaMA-Factory's `reward_model_type: lora`"
OPTIONS = {
    "PPOConfig": quiet("any", **SAMPLED, num_iterations=1),
    "RAFTConfig": quiet("any", **SAMPLED, drop_truncated=False, num_stages=1, stage_batch_size=None, max_steps=-1),
}


def cells(title: str) -> list[str]:
    """The right ones of its table."""
    return re.findall(r"^\| .*?\| (.*) \|$", SECTIONS[title], re.M)[1:]


def ours(title: str) -> list[str]:
    """The code that begins each right cell."""
    found = [re.match(r"`([^`]+)`", cell) for cell in cells(title)]
    return [code[1] for code in found if code and "(" in code[1]]


def smaller(name: str):
    """A config whose sizes are a test's; what the page gives beyond them must be options that there are."""
    made = getattr(trl_ext, name)

    def config(folder: str, **given):
        given = {key: value for key, value in given.items() if key not in OPTIONS[name]}
        return made(**OPTIONS[name] | given | {"output_dir": folder})

    return config


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = SIZES | {"max_position_embeddings": 1024}
    for name, model in {
        "my-sft": tiny_llama(byte_tokenizer(), **sizes),
        "my-reward-model": tiny_reward_model(byte_tokenizer(), **sizes),
    }.items():
        model.save_pretrained(name)
        byte_tokenizer().save_pretrained(name)
    base = SharedBase.from_pretrained("my-sft")
    base.reward_model(LoraConfig(target_modules="all-linear")).module.save_pretrained("my-reward-adapter")
    texts = ["why?", "say it", "who?", "go on"]
    Path("questions.jsonl").write_text("\n".join(json.dumps({"query": text}) for text in texts))
    Path("prompts.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    Path("rlhf_prompt.json").write_text(json.dumps({"type": "text_only", "instances": [{"text": t} for t in texts]}))


def names() -> dict:
    classes = {name: getattr(trl_ext, name) for name in ("LearnedReward", "PPOTrainer", "RAFTTrainer", "SharedBase")}
    prompts = load_dataset("json", data_files="prompts.jsonl", split="train")
    configs = {name: smaller(name) for name in OPTIONS}
    return classes | configs | {"load_dataset": load_dataset, "LoraConfig": LoraConfig, "prompts": prompts}


@pytest.mark.slow
@pytest.mark.parametrize(("title", "folder_name"), [("StackLLaMA's program (`trl` 0.4)", "tuned"), ("TRL's multi-adapter RL", "two-adapters")])  # fmt: skip
def test_each_right_side_of_ppo(title, folder_name):
    known = names()
    for code in ours(title):
        exec(code, known)
    trainer = known["trainer"]
    assert trainer.state.global_step == 2 and trainer.args.output_dir == folder_name
    assert torch.isfinite(torch.tensor(trainer.state.log_history[0]["loss"]))


@pytest.mark.slow
def test_each_right_side_of_raft():
    known = names()
    code = ours("LMFlow's RAFT")
    assert len(code) == 6
    for line in code:
        exec(line, known)
    assert isinstance(known["trainer"], RAFTTrainer) and Path("raft/grow-000.parquet").is_file()


def value_head_adapter(folder: Path) -> torch.Tensor:
    """A reward adapter as LLaMA-Factory saves it: a causal model's, with its head in a file beside it; the head."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(byte_tokenizer(), **SIZES), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))  # fmt: skip
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    model.peft_config["default"].base_model_name_or_path = "my-sft"
    model.save_pretrained(folder)
    head = {"v_head.summary.weight": torch.randn(1, SIZES["hidden_size"]), "v_head.summary.bias": torch.ones(1)}
    save_file(head, folder / "value_head.safetensors")
    return head["v_head.summary.weight"]


@pytest.mark.slow
def test_llama_factory_s_reward_adapter_and_its_yaml():
    """Converted as printed its score is the head's on the last hidden state; the right column is a run's YAML."""
    head = value_head_adapter(Path("saves/reward"))
    ids = torch.tensor([[*byte_tokenizer()("why? so")["input_ids"], byte_tokenizer().eos_token_id]])
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("my-sft"), "saves/reward").eval()
    expected = (theirs(ids, output_hidden_states=True).hidden_states[-1][0, -1] @ head[0]).item()
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[FACTORY], re.S)
    exec(code, {})
    (score,) = SharedBase.from_pretrained("my-sft").reward_model("saves/reward")(prompts=["why?"], completions=[" so"])
    assert score == pytest.approx(expected, rel=1e-4)
    lines = [line for cell in cells(FACTORY) for line in re.findall(r"`(\w+: [^`]+)`", cell)]
    settings = functools.reduce(lambda found, line: found | yaml.safe_load(line), lines, {})
    assert settings["kl_target"] == 6.0 and settings["load_in_8bit"] is True
    small = {name: value for name, value in quiet("tuned", **SAMPLED).items() if name != "output_dir"}
    Path("ppo.yaml").write_text(yaml.safe_dump(settings | small))
    main(["ppo", "--config", "ppo.yaml"])
    assert Path("tuned/adapter_model.safetensors").is_file()
