"""`trl-ext plan`, in process."""

import inspect

import pytest

from trl_ext.cli import _parser, main
from trl_ext.cli.plan import card_bytes
from trl_ext.memory_planning import memory_plan
from trl_ext.memory_planning.plan_changes import CHANGES

GIB = 2**30


def run(*options) -> None:
    main(["plan", *options])


def ended(*options) -> int:
    with pytest.raises(SystemExit) as end:
        run(*options)
    return end.value.code


@pytest.fixture(params=[80, 120])
def columns(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


def test_table_bars_and_verdict_fit_the_terminal(columns, capsys):
    run("llama-2-7b", "--bits", "8", "--gpu", "24GB")
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= columns
    for expected in ("load", "generate", "score", "train", "KV cache", "█", "24GB, 23.5 GiB: fits"):
        assert expected in printed
    assert "not verified on a GPU" in printed.replace("\n", " ") and "…" not in printed


def test_it_advises_where_it_does_not_fit(capsys):
    options = ["--bits", "8", "--value-model", "--no-shared", "--micro-batch", "8"]
    assert ended("llama-3.1-8b", *options, "--gpu", "24GB") == 1
    printed = capsys.readouterr().out
    assert "does not fit" in printed and "1. micro-batches of 2" in printed and "costs:" in printed
    assert "--micro-batch 2, in a script per_device_train_batch_size=2" in printed
    assert ended("llama-3.1-8b", "--gpu", "2GB") == 1
    assert "Not even all of these make it fit" in capsys.readouterr().out
    least = ["--method", "sft", "--bits", "4", "--lora", "1", "--batch", "1", "--completion-length", "32"]
    assert ended("llama-2-7b", *least, "--optimizer", "paged_adamw_8bit", "--gpu", "1GB") == 1
    assert "None of the known changes needs less." in capsys.readouterr().out


def test_it_advises_full_fine_tuning(capsys):
    assert ended("llama-2-7b", "--lora", "0", "--no-shared", "--gpu", "24GB") == 1
    printed = capsys.readouterr()
    assert "--lora 16 --shared, in a script SharedBase.policy(" in printed.out and printed.err == ""


def test_without_a_card_there_is_no_verdict(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run("qwen3-8b", "--method", "sft", "--lora", "0", "--optimizer", "paged_adamw_8bit")
    printed = capsys.readouterr().out
    assert "give --gpu" in printed and "wait in the computer's memory" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["llama-2-7b", "--method", "dpo"], "--method dpo: expected one of ppo"),
        (["llama-2-7b", "--bits", "12"], "trl-ext plan --bits 12: expected 16, 8 or 4. Give 16 for weights"),
        (["llama-2-7b", "--generator", "vllm", "--served-bits", "5"], "--served-bits 5: expected 16, 8 or 4"),
        (["llama-2-7b", "--lora", "-1"], "--lora -1: expected a rank from 1 on. Give 0 to train all weights"),
        (["llama-2-7b", "--bits", "8", "--lora", "0"], "Give a LoRA rank, e.g. --lora 16, or --bits 16"),
        (["llama-2-7b", "--prompt-length", "-4"], "--prompt-length -4: expected a whole"),
        (["llama-2-7b", "--gpu", "big"], "--gpu 'big': expected a card's name, or a size with a unit"),
        (["llama-2-7b", "--gpu", "0GB"], "--gpu '0GB'"),
        (["no-such-model"], "error: no-such-model: expected one of"),
    ],
)
def test_bad_input_ends_with_code_2(options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*options)
    captured = capsys.readouterr()
    assert ended.value.code == 2 and captured.out == ""
    assert captured.err.startswith("trl-ext plan: error: ") and message in captured.err


def test_sixteen_bits_are_none(capsys):
    run("llama-2-7b", "--bits", "16", "--gpu", "80GB")
    assert "ppo on llama-2-7b, bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.setting)
def test_every_suggestion_is_an_option_of_the_command(change):
    """Taken as it is printed, it sets what the suggestion sets."""
    flag = change.flag.format(value=7 if "{value}" in change.flag else None)
    args = _parser().parse_args(["plan", "llama-2-7b", *flag.split()])
    default = _parser().parse_args(
        ["plan", "llama-2-7b", "--no-gradient-checkpointing", "--no-shared", "--value-model"]
    )
    assert getattr(args, change.setting) != getattr(default, change.setting) and change.config


def test_sizes_of_cards():
    assert card_bytes("24GB") == int(24 * GIB * 0.98)
    assert card_bytes("23.5GiB") == card_bytes(" 24064 mib ") == int(23.5 * GIB)
    assert card_bytes("80") == card_bytes("80gb")


def test_the_command_has_the_defaults_of_memory_plan():
    args, parameters = _parser().parse_args(["plan", "llama-2-7b"]), inspect.signature(memory_plan).parameters
    defaults = {name: parameters[name].default for name in parameters if name not in ("model", "device")}
    assert {name: getattr(args, name) for name in defaults} == defaults
