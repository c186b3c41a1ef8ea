"""examples/methods and its README, run as they are with the smallest models and settings."""

import ast
import doctest
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset
from encoders import saved_bert
from methods import best_worst_dpo, ppo_r3, ppo_remote_reward, raft, rest, stack_llama
from shared_case import SIZES
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from trl import DPOConfig, ModelConfig, TrlParser

import trl_ext
from trl_ext import LearnedReward, PPOConfig, RAFTConfig, ReSTConfig

FOLDER = Path(__file__).parents[1] / "examples"
METHODS = sorted((FOLDER / "methods").glob("[a-z]*.py"))
SMALL = [
    "--use_cpu",
    "--bf16",
    "false",
    "--report_to",
    "none",
    "--disable_tqdm",
    "true",
    "--output_dir",
    "out",
    "--model_name_or_path",
    "policy",
    "--dtype",
    "float32",
    "--per_device_train_batch_size",
    "4",
]
LORA = ["--use_peft", "--lora_target_modules", "all-linear"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = SIZES | {"max_position_embeddings": 1024}
    models = {
        "policy": tiny_llama(byte_tokenizer(), **sizes),
        "reward": tiny_reward_model(byte_tokenizer(), **sizes),
        "classifier": tiny_reward_model(byte_tokenizer(), num_labels=2, **sizes),
    }
    for name, model in models.items():
        model.save_pretrained(name)
        byte_tokenizer().save_pretrained(name)
    questions = [f"What is the capital of country number {i}?" for i in range(60)]
    rows = {
        "prompts": [{"prompt": text, "reference": f"It is town {i}."} for i, text in enumerate(questions)],
        "few": [{"prompt": text} for text in questions[:4]],
        "records": [{"prompt": {"text": text, "toxicity": 0.5}} for text in questions[:4]],
        "answers": [{"prompt": text, "completion": " Here."} for text in questions[:8]],
        "pairs": [{"prompt": text, "chosen": " Here it is.", "rejected": " No."} for text in questions[:8]],
    }
    for name, each in rows.items():
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, each)))


def parsed(module, config: type, *flags: str) -> tuple:
    return TrlParser((module.Options, config, ModelConfig)).parse_args_and_config([*SMALL, *flags])


def steps(folder: str = "out") -> int:
    """That the run in a folder made, by its own record."""
    (path, *_) = sorted(Path(folder).rglob("trainer_state.json"))
    return json.loads(path.read_text())["global_step"]


@pytest.mark.slow
def test_r3_in_ppo(capsys):
    encoder = saved_bert(Path("bert"))
    flags = f"--prompts prompts.jsonl --encoder {encoder} --max_steps 1 --max_completion_length 8".split()
    with pytest.warns(UserWarning):  # an untrained encoder tells nothing apart
        ppo_r3.main(*parsed(ppo_r3, PPOConfig, *flags, *LORA))
    assert "of 60 prompts have a type" in capsys.readouterr().out
    assert Path("out/adapter_model.safetensors").is_file()


def test_r3_without_any_reference_says_so():
    with pytest.raises(SystemExit, match=r"few\.jsonl: no row has a `reference`"):
        ppo_r3.typed_prompts("few.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--prompts few.jsonl --reward reward", "--prompts records.jsonl --prompt_field text --reward classifier --label LABEL_1"])  # fmt: skip
def test_raft(flags):
    flags += " --num_stages 1 --num_generations 2 --max_completion_length 8 --drop_truncated false"
    raft.main(*parsed(raft, RAFTConfig, *flags.split()))
    assert Path("out/grow-000.parquet").is_file() and Path("out/model.safetensors").is_file()
    with pytest.raises(ValueError, match=r"--label: expected one of \['LABEL_0', 'LABEL_1'\], got 'nothate'"):
        raft.sure_of("nothate", "classifier", device="cpu")


@pytest.mark.slow
def test_the_label_is_what_is_paid_for():
    texts = ["What a day", "so it goes", "", "1, 2"]
    first, second = (raft.sure_of(f"LABEL_{i}", "classifier", device="cpu")(completions=texts) for i in (0, 1))
    assert [a + b for a, b in zip(first, second, strict=True)] == pytest.approx([1.0] * 4)
    assert len(set(first)) > 1


@pytest.mark.slow
def test_rest(capsys):
    flags = (
        "--prompts few.jsonl --held_out few.jsonl --reward reward --num_stages 1 --num_generations 2 --thresholds 0.0 0.5 --score_map running "
        "--max_completion_length 8 --drop_truncated false"
    )
    rest.main(*parsed(rest, ReSTConfig, *flags.split()))
    assert Path("out/model.safetensors").is_file() and "kl" in capsys.readouterr().out


@pytest.mark.slow
def test_best_and_worst_into_dpo(capsys):
    flags = [
        "--prompts",
        "few.jsonl",
        "--reward",
        "reward",
        "--samples",
        "3",
        "--max_completion_length",
        "8",
        "--max_steps",
        "1",
    ]
    best_worst_dpo.main(*parsed(best_worst_dpo, DPOConfig, *flags, *LORA))
    pairs = [json.loads(line) for line in Path("out/pairs.jsonl").read_text().splitlines()]
    reward = LearnedReward("reward")
    scored = {
        side: reward(
            prompts=[pair["prompt"] for pair in pairs],
            completions=[pair[side] for pair in pairs],
            completion_ended=[False] * 4,  # as the untrained policy left them
        )
        for side in ("chosen", "rejected")
    }
    assert len(pairs) == 4 and all(a > b for a, b in zip(scored["chosen"], scored["rejected"], strict=True))
    assert "4 pairs of 4 prompts" in capsys.readouterr().out and Path("out/adapter_model.safetensors").is_file()


def test_answers_that_score_alike_make_no_dpo(monkeypatch):
    """And no error of DPOTrainer's about rows that are not there."""
    alike = Dataset.from_list([{"row": 0, "prompt": "why?", "completion": text, "proxy": 1.0} for text in "ab"])
    monkeypatch.setattr(best_worst_dpo, "best_of_n", lambda *_, **__: SimpleNamespace(samples=alike))
    with pytest.raises(SystemExit, match="All answers to each prompt score alike"):
        best_worst_dpo.main(*parsed(best_worst_dpo, DPOConfig, "--prompts", "few.jsonl", "--reward", "reward"))
    assert not Path("out/pairs.jsonl").exists()


@pytest.fixture
def served():
    with ppo_remote_reward.server(LearnedReward("reward"), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
def test_ppo_by_a_remote_reward(served):
    texts = {"prompts": ["why?", "who?"], "completions": [" so", " me"]}
    remote, here = ppo_remote_reward.remote_reward(served), LearnedReward("reward")
    assert remote(**texts) == pytest.approx(here(**texts))
    for ends in ({"completion_ended": [True, False]}, {"completion_ids": [[here.tokenizer.eos_token_id], [5]]}):
        cut = here(**texts, **ends)
        assert remote(**texts, **ends) == pytest.approx(cut) and cut[1] != here(**texts)[1]
    flags = f"train --url {served} --prompts few.jsonl --max_steps 1 --max_completion_length 8".split()
    ppo_remote_reward.main([*flags, *SMALL])
    assert Path("out/model.safetensors").is_file()


def test_a_remote_reward_that_is_not_there_is_asked_three_times(monkeypatch):
    waited = []
    monkeypatch.setattr(ppo_remote_reward.time, "sleep", waited.append)
    with pytest.raises(OSError):
        ppo_remote_reward.remote_reward("http://localhost:9", timeout=1)(prompts=["a"], completions=["b"])
    assert waited == [1, 2]


@pytest.mark.slow
def test_stack_llama_and_again():
    """SFT, reward model and PPO on one base; what is there is not trained again."""
    flags = "--model policy --answers answers.jsonl --pairs pairs.jsonl --prompts few.jsonl --output-dir out --prompt-length 64 "
    flags += "--completion-length 8 --batch 4 --max-steps 1"
    stack_llama.main(stack_llama.parse(flags.split()))
    files = {name: Path("out") / name / "adapter_model.safetensors" for name in ("sft", "reward", "ppo")}
    assert all(file.is_file() for file in files.values())
    times = {name: files[name].stat().st_mtime_ns for name in ("sft", "reward")}
    with pytest.raises(ValueError, match="PPOTrainer"):  # whose folder has a finished run
        stack_llama.main(stack_llama.parse(flags.split()))
    assert times == {name: files[name].stat().st_mtime_ns for name in times}


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.name)
def test_a_method_is_short_and_stands_on_public_names(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 80
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    own = [node for node in imports if node.module.split(".")[0] == "trl_ext"]
    assert own and all(node.module == "trl_ext" for node in own)
    assert {alias.name for node in own for alias in node.names} <= set(trl_ext.__all__)


def test_data_of_the_wild_as_printed():
    failed, ran = doctest.testfile(str(FOLDER / "README.md"), module_relative=False)
    assert not failed and ran >= 10
