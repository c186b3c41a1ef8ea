"""The first page's programs run as they are printed; only their sizes are a test's."""

import ast
import doctest
import functools
import json
import re
import shlex
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import trl
from datasets import Dataset
from encoders import saved_bert
from peft import get_peft_model
from shared_case import SIZES, lora, quiet
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

import trl_ext
from trl_ext import SharedBase, TransformersGenerator
from trl_ext.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()
PROGRAMS = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if ">>>" not in block]
KOREAN = (Path(__file__).parents[1] / "README.ko.md").read_text(encoding="utf-8")
KOREAN_PROGRAMS = re.findall(r"```python\n(.*?)```", KOREAN, re.S)
SAMPLED = {"max_completion_length": 8, "per_device_train_batch_size": 4}
SIZES_OF_A_TEST = {
    "PPOConfig": SAMPLED,
    "ImitationRewardConfig": {"per_device_train_batch_size": 4},
    "RAFTConfig": SAMPLED | {"drop_truncated": False, "max_steps": -1},  # an untrained model ends nothing
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the programs ask for by name, in the folder where they run; a name that is a folder is not a hub's."""
    monkeypatch.chdir(tmp_path)
    model = tiny_llama(byte_tokenizer(), **SIZES | {"max_position_embeddings": 1024})
    for name in ("meta-llama/Llama-2-7b-hf", "Qwen/Qwen2.5-0.5B-Instruct"):
        model.save_pretrained(name)
        byte_tokenizer().save_pretrained(name)
    shared = SharedBase.from_pretrained("meta-llama/Llama-2-7b-hf")
    torch.manual_seed(0)
    shared.policy(lora(lora_dropout=0.5)).save_pretrained("my-sft-adapter")
    shared.reward_model(lora(lora_dropout=0.5)).module.save_pretrained("my-reward-adapter")
    tiny_reward_model(byte_tokenizer(), **SIZES | {"max_position_embeddings": 1024}).save_pretrained("my-reward-model")
    byte_tokenizer().save_pretrained("my-reward-model")
    Path("facebook").mkdir()
    Path(saved_bert(tmp_path / "bert")).rename("facebook/contriever")
    shutil.copytree("facebook/contriever", "facebook/mcontriever")
    pairs = [
        {"prompt": "why?", "chosen": " so", "rejected": " no"},
        {"prompt": "say", "chosen": " it", "rejected": " on"},
    ]
    prompts = [{"prompt": "why?"}, {"prompt": "say it"}]
    for name, rows in (("pairs", pairs), ("prompts", prompts), ("held-out", prompts)):
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows * 8)))
    for name, options in SIZES_OF_A_TEST.items():
        made_quiet = {name: value for name, value in quiet("any", **options).items() if name != "output_dir"}
        monkeypatch.setattr(trl_ext, name, functools.partial(getattr(trl_ext, name), **made_quiet), raising=False)


def printed(program: str) -> str:
    """The program, with short completions."""
    if "evaluate(" in program:
        return program.replace("max_completion_length=256", "max_completion_length=8")
    return re.sub(r"(, )?max_completion_length=256", "", program)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_each_program_as_printed(folder, number):
    names = {}
    if "evaluate(" in PROGRAMS[number]:
        exec(printed(PROGRAMS[0]), {})  # it looks at that one's policy
    exec(printed(PROGRAMS[number]), names)
    if "evaluate(" in PROGRAMS[number]:
        assert names["after"].summary["kl"] > 0.0 == names["before"].summary["kl"]
        return
    trainer = names["trainer"]
    assert trainer.state.global_step == trainer.state.max_steps > 0
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_each_trainer_has_a_program():
    assert len(PROGRAMS) == 5 and all("from trl_ext import" in program for program in PROGRAMS)


def test_the_korean_page_says_the_same():
    """Its first program is the first page's but for its comments, and its commands are the first page's."""
    pairs, _ = KOREAN_PROGRAMS
    assert ast.dump(ast.parse(pairs)) == ast.dump(ast.parse(PROGRAMS[0]))
    commands = re.findall(r"```sh\n(.*?)```", KOREAN, re.S)
    assert commands and set(commands) <= set(re.findall(r"```sh\n(.*?)```", README, re.S))


def rows_of_methods(page: str) -> list[str]:
    """Of the first page's first table: which method when."""
    return [line for line in re.search(r"^\|---.*\n((?:\|.*\n)+)", page, re.M)[1].splitlines()]


def claims(row: str) -> list[set[str]]:
    """What is alike in every language: names, where links lead, and measured numbers."""
    return [set(re.findall(kind, row)) for kind in (r"`([^`]*)`", r"\]\(([^)]*)\)", r"(?<![\w.])\d+\.\d+")]


def test_the_korean_page_s_table_claims_the_same():
    korean, english = rows_of_methods(KOREAN), rows_of_methods(README)
    assert [claims(row) for row in korean] == [claims(row) for row in english] and len(korean) == 7


def test_the_korean_page_leads_to_each_notebook_for_a_card_and_the_pictures():
    for kind in (r"notebooks/(?!from_nothing)\w+\.ipynb", r"\]\(([^)]*\.png)\)"):
        assert set(re.findall(kind, KOREAN)) == set(re.findall(kind, README)) != set()


def test_the_korean_page_s_dry_run_is_the_first_page_s():
    """But for the model's name."""
    command = r"`(trl-ext\sppo\s--config[^`]*)`"
    (korean,), (english,) = (re.findall(command, page) for page in (KOREAN, README))
    assert korean.replace("모델", "meta-llama/Llama-3.1-8B").split() == english.split()


@pytest.mark.slow
def test_the_korean_page_s_r3_as_printed(folder):
    names = {}
    exec(printed(KOREAN_PROGRAMS[1]), names)
    assert names["trainer"].state.global_step == names["trainer"].state.max_steps > 0


@pytest.mark.slow
def test_the_korean_page_s_r3_from_a_shell(folder):
    """Labels, the constant that the second command proposes, and a run by it."""
    rows = [{"prompt": f"{i} 더하기 {i}은 얼마인가요?", "reference": f"{2 * i}입니다."} for i in range(60)]
    Path("prompts.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", KOREAN, re.S)
    program = re.search(r"python -c '(.*?)'\n", block, re.S)[1]
    label, train = (
        shlex.split(command.replace("\\\n", " ")) for command in re.split(r"python -c '.*?'\n", block, flags=re.S)
    )
    main(label[1:])
    names = {}
    exec(program.replace("\ncalibrate", "\nfound = calibrate"), names)
    train[train.index("TOP")] = str(names["found"].top_relevance)
    main([*train[1:], *shlex.split(SHORT_RUNS["ppo"])])
    assert Path("r3/adapter_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["PPO", "GRPO", "RLOO"])
def test_one_base_as_printed(folder, trainer):
    """The same program in TRL's own trainers: two names change, and what they do not take is left out."""
    code, names = next(program for program in PROGRAMS if "SharedBase.from_" in program), {}
    if trainer != "PPO":
        code = code.replace("PPOConfig, PPOTrainer, ", "").replace("PPO", trainer)
        code = re.sub(r"\n    value_model=.*", "", code)
        config, cls = {"GRPO": (GRPOConfig, GRPOTrainer), "RLOO": (RLOOConfig, RLOOTrainer)}[trainer]
        options = {name: value for name, value in quiet("any", **SAMPLED).items() if name != "output_dir"}
        names[f"{trainer}Trainer"] = cls
        names[f"{trainer}Config"] = functools.partial(
            config, beta=0.1, num_generations=2, disable_dropout=True, **options
        )
    exec(code, names)
    log = names["trainer"].state.log_history
    kl = [entry["kl"] for entry in log if "kl" in entry]
    scores = [entry["rewards/my-reward-adapter/mean"] for entry in log if "rewards/my-reward-adapter/mean" in entry]
    assert kl[0] == 0.0 and len(scores) == (1 if trainer == "PPO" else 2)  # PPO reads a rollout four times


@pytest.mark.slow
def test_grpo_sampled_by_a_generator_as_printed(folder, monkeypatch):
    """PPO's page, with our own sampler in vLLM's place."""
    text = (Path(trl_ext.__file__).parent / "ppo" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    options = {name: value for name, value in quiet("any", **SAMPLED).items() if name != "output_dir"}
    monkeypatch.setattr(trl, "GRPOConfig", functools.partial(GRPOConfig, num_generations=2, **options))
    monkeypatch.setattr(trl_ext, "VLLMGenerator", TransformersGenerator, raising=False)
    names = {"reward": lambda completions, **_: [float(len(text)) for text in completions]}
    names["prompts"] = Dataset.from_dict({"prompt": ["why?", "say it"] * 8})
    exec(code, names)
    names["trainer"].train()
    assert names["trainer"].state.global_step == 2 and names["trainer"].rollout_func.generator.name == "transformers"


@pytest.mark.slow
def test_a_generator_of_ones_own_as_printed(folder):
    """The inside page's: what it samples is learned from."""
    text, names = (Path(trl_ext.__file__).parent / "README.md").read_text(), {}
    for example in doctest.DocTestParser().get_examples(text):
        if example.source.startswith(("class ", "from ")):
            exec(example.source, names)
    trainer = trl_ext.RAFTTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        args=trl_ext.RAFTConfig(output_dir="parrot", num_stages=1),
        train_dataset=Dataset.from_dict({"prompt": ["why?", "say it"] * 2}),
        generator=names["Parrot"](),
    )
    trainer.train()
    grow = pq.read_table("parrot/grow-000.parquet").to_pylist()
    assert {row["completion"] for row in grow if row["kept"]} == {"why?", "say it"}


@pytest.mark.slow
def test_columns_of_pairs_as_printed(folder):
    """The reward models' page: lists, soft labels, and the margins of what both have learned."""
    text = (Path(trl_ext.__file__).parent / "reward_modeling" / "README.md").read_text()
    code, _ = re.findall(r"```python\n(.*?)```", text, re.S)
    names = {}
    exec(code, names)
    assert names["trainer"].state.global_step == 2 and len(names["pairs"]["margin"]) == 8


def test_a_laptops_adapter_as_printed():
    """Head and upper layers of a model of 18: the lower ones have no adapter."""
    text = (Path(trl_ext.__file__).parent / "reward_modeling" / "README.md").read_text()
    _, code = re.findall(r"```python\n(.*?)```", text, re.S)
    names = {}
    exec(code, names)
    model = get_peft_model(tiny_reward_model(byte_tokenizer(), num_hidden_layers=18), names["peft_config"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {int(name.split("layers.")[1].split(".")[0]) for name in trained if "layers." in name} == {*range(12, 18)}
    assert any("score" in name for name in trained)


SHELL = (Path(__file__).parents[1] / "trl_ext" / "cli" / "README.md").read_text()
LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", SHELL, re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if not line.startswith("accelerate")
]
SMALL = "--max_steps 1 --per_device_train_batch_size 4 --report_to none"
SHORT_RUNS = {
    "reward": f"{SMALL} --max_length 64",
    "ppo": f"{SMALL} --max_completion_length 8",
    "evaluate": "--max_completion_length 8",
    "generate": "--max-completion-length 8 --device cpu",
}


@pytest.mark.slow
def test_the_shells_page_from_its_first_line_to_its_last(folder, capsys):
    """One after another, as a reader would; only the sizes are a test's."""
    (rewards,) = re.findall(r"```python\n# rewards.py\n(.*?)```", SHELL, re.S)
    Path("rewards.py").write_text(rewards)
    for name in ("prompts", "held-out"):
        rows = [{"prompt": prompt, "answer": "a"} for prompt in ("why?", "say it")] * 8
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("examples").symlink_to(Path(__file__).parents[1] / "examples")
    for line in LINES:
        words = shlex.split(line)
        assert words[0] == "trl-ext"
        options = "--max_completion_length 8 --report_to none" if "--config" in words else SHORT_RUNS.get(words[1], "")
        main([*words[1:], *shlex.split(options)])
    assert all(Path(name).exists() for name in ("ppo/_report.html", "ppo-merged/config.json", "scored.parquet"))
    assert "⟦why?⟧" in capsys.readouterr().out
