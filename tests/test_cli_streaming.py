"""`--dataset_streaming`: a file is read as it comes, and is learned from as it would be whole."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli_case import PAIRS, PROMPTS, REWARDS, folder_here, refused, write_rows  # noqa: F401 - the fixture `here`
from datasets import IterableDataset
from safetensors.torch import load_file
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model

from trl_ext.cli import main
from trl_ext.cli.command_arguments import DataArguments
from trl_ext.cli.data_rows import train_rows

SHORT = """
model_name_or_path: model
columns: [prompt=question]
reward_funcs: [rewards.py:nearness]
max_completion_length: 4
per_device_train_batch_size: 4
learning_rate: 1e-3
report_to: none
"""
STAGES = "num_stages: 1\nnum_generations: 2\nstage_batch_size: 16\ndrop_truncated: false\nimprove_steps: 2\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("streams"), byte_tokenizer()
    for name, model in (("model", tiny_llama(tokenizer)), ("scorer", tiny_reward_model(tokenizer))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_rows(folder / "prompts.jsonl", PROMPTS)
    write_rows(folder / "pairs.jsonl", PAIRS)
    pq.write_table(pa.Table.from_pylist(PROMPTS), folder / "prompts.parquet")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    (folder / "damaged.jsonl").write_text(json.dumps(PROMPTS[0]) + "\n{\n")
    (folder / "ragged.jsonl").write_text(json.dumps(PROMPTS[0]) + '\n{"wanted": 3}\n')
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "short.yaml").write_text(SHORT)
    (folder / "stages.yaml").write_text(SHORT + STAGES)
    return folder


def streamed(name: str, *columns: str) -> IterableDataset:
    return train_rows(DataArguments(dataset_name=name, columns=list(columns)), streamed=True)


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.parquet"])
def test_rows_come_as_they_are_read_whole(name, here):
    rows = train_rows(DataArguments(dataset_name=name, columns=["prompt=question"]))
    assert list(streamed(name, "prompt=question")) == list(rows)
    assert "question" not in next(iter(streamed(name, "prompt=question")))


def test_a_row_without_the_renamed_column_is_told_by_its_number(here, capsys):
    """As of a file that is read whole."""
    told = refused(
        capsys,
        "raft",
        "--config",
        "stages.yaml",
        "--dataset_name",
        "ragged.jsonl",
        "--output_dir",
        "out",
        "--dataset_streaming",
    )
    assert "row 1" in told and "there is none" in told


@pytest.mark.parametrize("command", ["raft", "rest"])
def test_a_stage_over_the_whole_stream_learns_what_one_over_the_file_does(command, here):
    options = ["--config", "stages.yaml", "--dataset_name", "prompts.jsonl"]
    options += ["--thresholds", "0", "--score_map", "grow"] if command == "rest" else []
    main([command, *options, "--output_dir", "whole"])
    main([command, *options, "--output_dir", "stream", "--dataset_streaming"])
    whole, stream = weights("whole"), weights("stream")
    assert all(torch.equal(stream[name], tensor) for name, tensor in whole.items())
    assert Path("stream/prompts-000.parquet").is_file() and not Path("whole/prompts-000.parquet").exists()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("ppo", ["--config", "short.yaml", "--dataset_name", "prompts.parquet"]),
        (
            "reward",
            [
                "--model_name_or_path",
                "model",
                "--dataset_name",
                "pairs.jsonl",
                "--max_length",
                "64",
                "--report_to",
                "none",
            ],
        ),
    ],
)
def test_others_take_so_many_steps_of_a_stream(command, options, here, capsys):
    options = [command, *options, "--output_dir", "out", "--dataset_streaming"]
    told = refused(capsys, *options)
    assert "--dataset_streaming, --max_steps -1: where a stream ends is not known" in told
    main([*options, "--max_steps", "1"])
    assert Path("out/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stage_batch_size", "None"], "with stage_batch_size=None: where it ends is not known"),
        (["--dataset_name", "prompts.json"], "a .json file is read whole. Convert it to .jsonl or .parquet"),
        (["--dataset_name", "absent.jsonl"], "--dataset_name absent.jsonl: there is no such file"),
        (
            ["--dataset_name", "damaged.jsonl"],
            "--dataset_name damaged.jsonl: it cannot be read (Expecting property name",
        ),
        (["--columns", "prompt=ask"], "and no 'ask' to be `prompt`"),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_a_model_is_loaded(options, message, here, capsys, monkeypatch):
    monkeypatch.setattr("trl_ext.cli.training_command.Roles", None)  # which loads
    given = ["--config", "stages.yaml", "--output_dir", "out", "--dataset_streaming"]
    given += [] if "--dataset_name" in options else ["--dataset_name", "prompts.jsonl"]
    assert message in refused(capsys, "raft", *given, *options)


def test_a_dry_run_shows_the_first_row(here, capsys):
    given = [
        "--config",
        "stages.yaml",
        "--dataset_name",
        "prompts.jsonl",
        "--output_dir",
        "out",
        "--dataset_streaming",
    ]
    main(["raft", *given, "--dry_run"])
    told = capsys.readouterr().out
    assert "a stream of rows; the first one" in told and "⟦say it⟧" in told


def test_help_names_it(capsys):
    with pytest.raises(SystemExit):
        main(["rest", "--help"])
    assert "--dataset_streaming" in capsys.readouterr().out
