"""Where nothing can be written, every command says so before it loads anything, in one line, also in a dry run."""

import json
from pathlib import Path

import pytest
from cli_case import refused
from tiny import byte_tokenizer, tiny_llama

NOWHERE = Path("/proc/trl_ext")  # also of root nothing is made there
TRAINED = "--model_name_or_path model --dataset_name rows.jsonl --max_length 64"
SAMPLED = "--model_name_or_path model --dataset_name rows.jsonl --reward_funcs rewards.py:none"
COMMANDS = {
    "reward": f"{TRAINED} --output_dir X",
    "ppo": f"{SAMPLED} --output_dir X",
    "raft": f"{SAMPLED} --output_dir X",
    "rest": f"{SAMPLED} --output_dir X",
    "generate": "--prompts rows.jsonl --model model --output X/samples.parquet",
    "score": "rows.jsonl --reward_funcs rewards.py:none --output X/scored.parquet",
    "evaluate": "model --dataset_name rows.jsonl --reward_funcs rewards.py:none --output X/samples.parquet",
    "report": "out --output X/page.html",
    "export": "adapter --output_dir X",
    "demo": "--quick --output-dir X",
}
DRY = ("reward", "ppo", "raft", "rest")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    tiny_llama(byte_tokenizer()).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    row = {"prompt": "a", "chosen": " b", "rejected": " c", "completion": " b"}
    (folder / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    (folder / "rewards.py").write_text("def none(completions, **columns):\n    return [0.0] * len(completions)")
    (folder / "adapter").mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(folder / "model"), "r": 4}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.skipif(not NOWHERE.parent.is_dir(), reason="needs a folder in which nobody can make one")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_made(command, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    for where, why in ((NOWHERE, "may not be written"), (Path("rows.jsonl/out"), "is a file")):
        words = COMMANDS[command].replace("X", str(where)).split()
        for more in ([], ["--dry_run"]) if command in DRY else ([],):
            told = refused(capsys, command, *words, *more).splitlines()[-1]
            assert f"{where}" in told and "expected a folder to write into, but" in told and why in told
            assert " --output" in told and "go on with" not in told
