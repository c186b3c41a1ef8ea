"""`trl-ext reward`, `ppo`, `raft` and `rest`, in process, with models of a few numbers."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from cli_case import PAIRS, PROMPTS, REWARDS, folder_here, refused, write_rows  # noqa: F401 - the fixture `here`
from datasets import Dataset
from peft import PeftConfig
from safetensors.torch import load_file
from tiny import byte_tokenizer, tiny_config, tiny_llama, tiny_reward_model
from transformers import AutoModelForSequenceClassification

from trl_ext.cli import main
from trl_ext.cli.command_arguments import DataArguments
from trl_ext.cli.data_rows import named_rows
from trl_ext.cli.dry_run import shortened

TRAINING = ("reward", "ppo", "raft", "rest")
CONFIGS = Path(__file__).parents[1] / "examples" / "configs"
FITS = ["--max_length", "64"]  # of the models below, which have a window of 256
SHORT = """
model_name_or_path: model
dataset_name: prompts.jsonl
columns: [prompt=question]
reward_funcs: [rewards.py:nearness]
output_dir: out
max_completion_length: 4
per_device_train_batch_size: 4
max_steps: 1
learning_rate: 1e-3
report_to: none
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with models, rows, rewards and YAML files, which no test changes."""
    folder = tmp_path_factory.mktemp("cli")
    tokenizer = byte_tokenizer()
    for name, model in (("model", tiny_llama(tokenizer)), ("scorer", tiny_reward_model(tokenizer))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    big = tiny_config(
        tokenizer,
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        max_position_embeddings=4096,
    )
    big.save_pretrained(folder / "7b")  # a configuration alone: nothing else is read of it
    tokenizer.save_pretrained(folder / "7b")
    write_rows(folder / "prompts.jsonl", PROMPTS)
    write_rows(folder / "pairs.jsonl", PAIRS)
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "short.yaml").write_text(SHORT)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def test_ppo_from_a_yaml_file_and_flags(here, capsys):
    main(["ppo", "--config", "short.yaml", "--use_peft", "--lora-r", "4"])
    told = capsys.readouterr()
    assert "Saved in out." in told.out and "use_cpu=true and bf16=false" in told.err
    assert PeftConfig.from_pretrained("out").r == 4
    record = json.loads(Path("out/trl_ext_run.json").read_text())
    assert record["config"]["learning_rate"] == 1e-3 and record["config"]["max_steps"] == 1


def test_the_same_command_goes_on(here, capsys):
    main(["ppo", "--config=short.yaml", "--save_steps", "1"])
    begun = weights(Path("out"))
    told = refused(capsys, "ppo", "--config", "short.yaml", "--save_steps", "1", "--beta", "0.2")
    assert "beta" in told
    main(["ppo", "--config", "short.yaml", "--save_steps", "1", "--max_steps", "2", "--accept_changes", "max_steps"])
    assert Path("out/checkpoint-2").is_dir()
    assert any(not torch.equal(tensor, begun[name]) for name, tensor in weights(Path("out")).items())


LONGER = {"ppo": "max_steps", "reward": "max_steps", "raft": "num_stages"}


@pytest.mark.parametrize("command", LONGER)
def test_a_finished_run_given_again_says_so_and_changes_nothing(command, here, capsys):
    """Also where a change is accepted: the record tells of what was trained."""
    config = ["--config", "short.yaml", "--output_dir", command]
    if command == "raft":
        config = [*adjusted(here, "raft"), "--num_stages", "1", "--num_generations", "2", "--stage_batch_size", "4"]
        config += ["--drop_truncated", "false"]
    if command == "reward":
        config = ["--model_name_or_path", "model", "--dataset_name", "pairs.jsonl", "--output_dir", command, *FITS]
        config += ["--max_steps", "2", "--report_to", "none"]
    main([command, *config])
    capsys.readouterr()
    files = {path: path.read_bytes() for path in Path(command).rglob("*") if path.is_file() and path.name[0] != "_"}
    with pytest.warns(UserWarning, match=rf"finished already, after step .* raise {LONGER[command]}"):
        main([command, *config, "--weight_decay", "0.1", "--accept_changes", "weight_decay"])
    told = capsys.readouterr()
    assert f"It stays as it is in {command}, beside checkpoint-" in told.out and "Saved" not in told.out
    assert {path: path.read_bytes() for path in files} == files
    assert "weight_decay" in refused(capsys, command, *config, "--weight_decay", "0.1")


def test_what_a_stop_at_the_last_step_has_kept_from_being_saved_is_saved(here, capsys):
    main(["ppo", "--config", "short.yaml"])
    capsys.readouterr()
    (here / "out" / "model.safetensors").unlink()
    (here / "out" / "config.json").unlink()
    with pytest.warns(UserWarning, match="finished already"):
        main(["ppo", "--config", "short.yaml"])
    assert "Saved in out." in capsys.readouterr().out and (here / "out" / "model.safetensors").is_file()


def test_reward_in_eight_bits_and_ppo_over_it(here, capsys):
    """The base is loaded once; the reward model's adapter becomes reward and critic on it."""
    bits = ["--load_in_8bit", "--per_device_train_batch_size", "4", "--max_steps", "1", "--report_to", "none"]
    main(
        [
            "reward",
            "--model_name_or_path",
            "model",
            "--dataset_name",
            "pairs.jsonl",
            "--output_dir",
            "rm",
            *bits,
            *FITS,
        ]
    )
    assert PeftConfig.from_pretrained("rm").task_type == "SEQ_CLS"
    options = ["--load_in_8bit", "--reward_funcs", "rm", "--value_model", "rm"]
    main(["ppo", "--config", "short.yaml", *options])
    assert PeftConfig.from_pretrained("out").task_type == "CAUSAL_LM"
    assert "base" not in json.loads(Path("out/trl_ext_run.json").read_text())["config"]


def test_a_whole_reward_model(here):
    options = ["--output_dir", "rm", "--max_steps", "1", "--report_to", "none", *FITS]
    main(["reward", "--model_name_or_path", "model", "--dataset_name", "pairs.jsonl", *options])
    assert AutoModelForSequenceClassification.from_pretrained("rm").config.num_labels == 1


def test_raft_and_rest_with_a_reward_model_beside_a_function(here):
    options = ["--reward_funcs", "scorer", "rewards.py:nearness", "--reward_weights", "1", "0.5"]
    options += ["--num_generations", "2", "--drop_truncated", "false", "--num_stages", "1"]
    main(["raft", *adjusted(here, "raft"), *options, "--stage_batch_size", "4"])
    assert list(Path("raft").glob("**/*.parquet"))
    main(["rest", *adjusted(here, "rest"), *options, "--thresholds", "0"])
    assert list(Path("rest").glob("**/*.parquet"))


def said_of_steps(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]


def test_each_grow_is_said_and_nothing_that_is_empty(here, capsys):
    options = ["--reward_funcs", "rewards.py:nearness", "--num_generations", "2", "--drop_truncated", "false"]
    main(["raft", *adjusted(here, "raft"), *options, "--num_stages", "2", "--stage_batch_size", "4"])
    said = said_of_steps(capsys)
    grows = [line for line in said if "grow/score" in line]
    assert [line.partition(": ")[2].partition(",")[0] for line in grows] == ["stage 0", "stage 1"]
    assert grows[0].startswith("step 0/") and not [line for line in said if line.endswith(("stage 0", "stage 1"))]


def test_a_short_run_says_what_it_learned(here, capsys):
    options = ["--output_dir", "rm", "--max_steps", "2", "--report_to", "none", *FITS]
    main(["reward", "--model_name_or_path", "model", "--dataset_name", "pairs.jsonl", *options])
    (line,) = said_of_steps(capsys)
    assert "accuracy" in line and "margin" in line and line.startswith("step 2/2: ")


@pytest.mark.parametrize("method", ["raft", "rest"])
def test_a_short_run_of_stages_says_its_loss(method, here, capsys):
    options = ["--num_generations", "2", "--drop_truncated", "false", "--num_stages", "1", "--logging_steps", "100"]
    options += ["--stage_batch_size", "4"] if method == "raft" else ["--selection", "percentile", "--thresholds", "0"]
    main([method, *adjusted(here, method), "--reward_funcs", "rewards.py:nearness", *options])
    last = said_of_steps(capsys)[-1]
    assert re.search(r"loss \d", last) and "trained in" in last


def test_steps_that_only_go_on_with_a_rollout_say_nothing(here, capsys):
    options = ["--max_steps", "4", "--logging_steps", "1", "--num_iterations", "2", "--steps_per_generation", "1"]
    main(["ppo", "--config", "short.yaml", *options])
    said = said_of_steps(capsys)
    assert sum("score" in line for line in said) == 2 and not [line for line in said if ": loss" in line]


def adjusted(here: Path, method: str) -> list[str]:
    """The YAML file without what only PPO takes."""
    lines = [line for line in SHORT.splitlines() if not line.startswith(("max_steps", "output_dir"))]
    (here / f"{method}.yaml").write_text("\n".join([*lines, f"output_dir: {method}"]))
    return ["--config", f"{method}.yaml"]


@pytest.mark.parametrize("command", TRAINING)
def test_help_begins_with_what_is_new_and_an_example(command, here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as raised:
        main([command, "--help"])
    told = capsys.readouterr().out
    assert raised.value.code == 0 and told.startswith(f"usage: trl-ext {command} --model_name_or_path MODEL")
    order = ["adds:", "data:", "model:", "--dry_run", "further options, of TRL", "--adam_beta1"]
    places = [told.index(words) for words in order]
    assert places == sorted(places)
    assert "--learning-rate" not in told  # each flag once


def test_an_unknown_flag_names_the_near_one(here, capsys):
    told = refused(capsys, "ppo", "--config", "short.yaml", "--learning-rat", "3")
    assert "there is no flag --learning-rat. Did you mean --learning_rate?" in told
    assert told.startswith("usage: trl-ext ppo --model_name_or_path")
    assert "Did you mean --gpu?" in refused(capsys, "plan", "llama-2-7b", "--gpus", "24GB")
    assert "'4' belongs to no flag" in refused(capsys, "ppo", "4", "--beta", "0.1")
    assert "invalid float value: 'much'" in refused(capsys, "ppo", "--beta", "much")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bata: 1\n", "there is no option 'bata'. Did you mean 'beta'?"),
        ("learning-rate: 1\n", "Did you mean 'learning_rate'?"),
        ("beta: !!python/object/apply:os.system [touch done]\n", "no tags"),
        ("beta: [1\n", "expected a YAML file"),
        ("- beta\n", "got list"),
        ("", "got NoneType"),
        ("env: {LD_PRELOAD: x.so}\n", "would set LD_PRELOAD"),
        ("env: {PATH: /tmp}\n", "would set PATH"),
        ("env: [HF_HOME]\n", "expected `env` to hold variables"),
        ("env: {1: x}\n", "would set 1"),
        ("config: other.yaml\n", "there is no option 'config'"),
        ("beta: -1\n", "PPOConfig(beta=-1)"),
    ],
)
def test_a_yaml_file_that_is_wrong(text, message, here, capsys):
    (here / "wrong.yaml").write_text(text)
    assert message in refused(capsys, "ppo", "--config", "wrong.yaml")
    assert not Path("done").exists()


def test_a_yaml_file_that_is_not_there(here, capsys):
    assert "No such file" in refused(capsys, "ppo", "--config", "none.yaml")
    (here / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "expected a YAML file" in refused(capsys, "ppo", "--config", "bytes.yaml")
    assert "expected the path of a YAML file" in refused(capsys, "ppo", "--config")


def test_variables_that_a_file_may_set(here, monkeypatch, capsys):
    monkeypatch.setenv("TRL_EXT_TRIED", "no")
    (here / "env.yaml").write_text(SHORT + "env: {TRL_EXT_TRIED: 'yes'}\n")
    main(["ppo", "--config", "env.yaml", "--dry_run"])
    assert os.environ["TRL_EXT_TRIED"] == "yes"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "there is no such file"),
        ("empty.jsonl", b"", "it has no rows"),
        ("cut.jsonl", b'{"question": "a", "wanted": 1}\n{"questi', "it cannot be read"),
        ("binary.jsonl", bytes(range(128, 256)), "it cannot be read"),
        ("binary.parquet", b"PAR1" + bytes(64), "it cannot be read"),
        ("rows.xml", b"<a/>", "expected a file that ends in"),
        ("other.jsonl", b'{"text": "a"}\n', "no 'question' to be `prompt`"),
        ("twice.jsonl", b'{"question": "a", "prompt": "b"}\n', "has a column 'prompt' already"),
    ],
)
def test_data_files_that_are_wrong(name, content, message, here, capsys):
    if content is not None:
        (here / name).write_bytes(content)
    told = refused(capsys, "ppo", "--config", "short.yaml", "--dataset_name", name)
    assert f"--dataset_name {name}" in told and message in told and told.count("\n") <= 2


def test_data_sets_that_cannot_be_loaded(here, capsys):
    """Neither a hub id that is not there nor a folder without rows is told of models."""
    (here / "folder").mkdir()
    (here / "folder" / "a.csv").write_bytes(bytes(range(128, 256)))
    (here / "nothing").mkdir()
    for name in ("nobody/nothing-of-the-kind", "folder", "nothing"):
        told = refused(capsys, "ppo", "--config", "short.yaml", "--dataset_name", name)
        assert f"--dataset_name {name}: no data set can be loaded from it (" in told and "save_pretrained" not in told
        assert "Give a .jsonl, .json, .csv, .parquet file" in told


def test_what_is_not_named(here, capsys):
    assert "--dataset_name: expected" in refused(capsys, "ppo", "--model_name_or_path", "model")
    data = ["--dataset_name", "prompts.jsonl", "--columns", "prompt=question", "--dry_run"]
    assert "--model_name_or_path: expected" in refused(capsys, "ppo", *data)
    data = [*data, "--model_name_or_path", "model"]
    assert "--reward_funcs: expected a reward" in refused(capsys, "ppo", *data)
    assert "--reward_funcs none.py:f: it cannot be imported" in refused(
        capsys, "ppo", *data, "--reward_funcs", "none.py:f"
    )
    assert "expected NEW=OLD" in refused(capsys, "ppo", "--dataset_name", "prompts.jsonl", "--columns", "prompt")
    assert "it would not be read" in refused(
        capsys, "ppo", "--dataset_name", "pairs.jsonl", "--eval_dataset_name", "x"
    )
    assert "expected rows to hold out" in refused(capsys, "ppo", *data, "--eval_strategy", "epoch")


def test_dry_run_shows_the_row_and_trains_nothing(here, capsys):
    main(["ppo", "--config", "short.yaml", "--dry_run"])
    told = capsys.readouterr().out
    assert "prompt" in told and "⟦say it⟧  (6 tokens)" in told and "⟦sampled: up to 4 tokens⟧" in told
    assert "wanted" in told and "(for the rewards)" in told and "train" in told
    main(["reward", "--model_name_or_path", "model", "--dataset_name", "pairs.jsonl", "--dry_run", *FITS])
    told = capsys.readouterr().out
    assert f"⟦ yes, and so{byte_tokenizer().eos_token}⟧" in told and "prompt of rejected" in told
    assert not Path("out").exists()


@pytest.mark.parametrize("command", TRAINING)
def test_a_tracker_that_is_not_there(command, here, capsys, monkeypatch):
    data = "pairs.jsonl" if command == "reward" else "prompts.jsonl"
    given = ["--model_name_or_path", "model", "--dataset_name", data, "--output_dir", "out", "--dry_run"]
    given += [] if command == "reward" else ["--reward_funcs", "rewards.py:nearness"]
    monkeypatch.setattr("trl_ext.cli.tracker_check.get_available_reporting_integrations", list)
    monkeypatch.setattr("trl_ext.cli.tracker_check.find_spec", lambda name: None)
    for name, package in (("tensorboard", "tensorboard"), ("wandb", "wandb"), ("azure_ml", "azureml-mlflow")):
        told = refused(capsys, command, *given, "--report_to", name)
        assert f"--report_to {name}: it is not installed. pip install {package}" in told
    (here / "track.yaml").write_text("report_to: [none, trackio]")
    assert "--report_to trackio: it is not" in refused(capsys, command, *given, "--config", "track.yaml")
    told = refused(capsys, command, *given, "--report_to", "tensorbord")
    assert "--report_to tensorbord: there is no such tracker. Did you mean tensorboard?" in told


def test_dry_run_refuses_what_training_would(here, capsys):
    config = ["ppo", "--config", "short.yaml", "--dry_run"]
    assert "--reward_weights [1.0, 2.0]" in refused(capsys, *config, "--reward_weights", "1", "2")
    assert "passes the model's window" in refused(capsys, *config, "--max_completion_length", "100000")
    (here / "few.jsonl").write_text('{"question": "a", "wanted": 1}\n')
    assert "has 1 prompts" in refused(capsys, *config, "--dataset_name", "few.jsonl")
    write_rows(here / "unwanted.jsonl", [{"question": "a"}] * 8)
    assert "reads the column `wanted`" in refused(capsys, *config, "--dataset_name", "unwanted.jsonl")


def test_ppo_with_another_sampler(here, capsys):
    main(["ppo", "--config", "short.yaml", "--generator", "transformers"])
    assert json.loads(Path("out/trl_ext_run.json").read_text())["generator"]["name"] == "transformers"
    assert "--accept_changes generator." in refused(capsys, "ppo", "--config", "short.yaml")


def test_a_sampler_that_there_is_not(here, capsys):
    config = ["--config", "short.yaml", "--dry_run"]
    told = refused(capsys, "ppo", *config, "--generator", "vlm")
    assert "--generator vlm: expected one of trl, transformers, vllm." in told
    told = refused(capsys, "ppo", *config, "--generator", "vllm", "--cache_implementation", "static")
    assert "cache_implementation='static': the generator samples" in told
    assert "none.parquet" in refused(
        capsys, "raft", *adjusted(here, "raft"), "--generator", "none.parquet", "--dry_run"
    )


@pytest.mark.parametrize("command", ["ppo", "raft", "rest"])
def test_the_plan_knows_who_samples(command, here, capsys):
    options = [command, *adjusted(here, command), "--use_peft", "--dry_run", "--card", "24GB"]
    for generator, at_vllm in ((), False), (("--generator", "transformers"), False), (("--generator", "vllm"), True):
        main([*options, *generator])
        assert ("vLLM" in capsys.readouterr().out) is at_vllm


@pytest.mark.parametrize("command", TRAINING)
def test_examples_for_7b_fit_24gb(command, here, capsys):
    write_rows(here / "asked.jsonl", [{"prompt": "x" * 512}] * 2048)
    data = "pairs.jsonl" if command == "reward" else "asked.jsonl"
    config = ["--config", str(CONFIGS / f"{command}_7b_24gb.yaml"), "--model_name_or_path", "7b"]
    options = [command, *config, "--dataset_name", data, "--dry_run", "--card"]
    main([*options, "24GB"])
    assert "24GB, 23.5 GiB: fits" in capsys.readouterr().out
    with pytest.raises(SystemExit) as raised:
        main([*options, "4GB"])
    assert raised.value.code == 1


@pytest.mark.parametrize("command", TRAINING)
def test_a_dry_run_names_its_own_options(command, here, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reward = ["--model_name_or_path", "model", "--dataset_name", "pairs.jsonl", *FITS]
    config = reward if command == "reward" else adjusted(here, command)
    main([command, *config, "--dry_run"])
    assert "give --card, e.g. --card 24GB." in capsys.readouterr().out
    assert "--card 'big': expected" in refused(capsys, command, *config, "--dry_run", "--card", "big")
    with pytest.raises(SystemExit):
        main([command, *config, "--dry_run", "--card", "0.001MB"])
    told = capsys.readouterr().out
    assert "Not even all of these make it fit:" in told and "costs: " in told
    assert "in a script" not in told and "   --" not in told


def test_samples_are_not_markup(here, capsys):
    write_rows(here / "marked.jsonl", [{"question": "[bold red]x[/] [/nothing]", "wanted": 1}] * 4)
    main(["ppo", "--config", "short.yaml", "--dataset_name", "marked.jsonl", "--dry_run"])
    assert "[bold red]x[/] [/nothing]" in capsys.readouterr().out


def test_a_terminal_obeys_no_row(here, capsys):
    asked = "\x1b[2J\x1b]0;taken\x07a\rb\x9bc\nd"
    write_rows(here / "odd.jsonl", [{"question": asked, "wanted": "\x1b[31m"}] * 4)
    main(["ppo", "--config", "short.yaml", "--dataset_name", "odd.jsonl", "--dry_run"])
    told = capsys.readouterr().out
    assert r"\x1b[2J\x1b]0;taken\x07a\rb\x9bc" + "\nd" in told and r"\x1b[31m" in told
    assert not set("\x1b\x07\r\x9b") & set(told)


def test_rows_by_name(here):
    rows = named_rows("prompts.jsonl", "train", DataArguments(columns=["prompt=question"]), flag="--dataset_name")
    assert isinstance(rows, Dataset) and rows.column_names == ["prompt", "wanted"]
    assert shortened("a" * 700) == "a" * 300 + " … " + "a" * 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_name_or_path: 3\n", "--model_name_or_path 3: it must"),
        ("dataset_name: [a]\n", "--dataset_name ['a']: it must"),
        ("reward_funcs: {a: b}\n", "--reward_funcs {'a': 'b'}: expected"),
        ("load_in_8bit: 7\n", "--load_in_8bit 7: it must"),
        ("dry_run: 2\n", "--dry_run 2: it must"),
        ("value_model: [1]\n", "--value_model [1]: it must"),
    ],
)
def test_a_yaml_value_of_another_type(text, message, here, capsys):
    (here / "wrong.yaml").write_text(text)
    assert message in refused(capsys, "ppo", "--config", "wrong.yaml")


def test_one_value_in_the_place_of_a_list(here, capsys):
    (here / "one.yaml").write_text(
        SHORT.replace("[rewards.py:nearness]", "rewards.py:nearness").replace("[prompt=question]", "prompt=question")
    )
    main(["ppo", "--config", "one.yaml", "--dry_run"])
    assert "⟦say it⟧" in capsys.readouterr().out


def test_what_a_dry_run_refuses_a_run_refuses_before_it_loads(here, capsys, monkeypatch):
    monkeypatch.setattr("trl_ext.cli.training_command.Roles", None)  # which loads
    config = ["ppo", "--config", "short.yaml"]
    assert "--reward_funcs rewards.py: it is a file" in refused(capsys, *config, "--reward_funcs", "rewards.py")
    assert "passes the model's window" in refused(capsys, *config, "--max_completion_length", "100000")
    assert "nowhere" in refused(capsys, *config, "--model_name_or_path", "nowhere")
    assert "--dry_run alone" in refused(capsys, *config, "--card", "24GB")
    assert "it may be given once" in refused(capsys, *config, *config[1:])
