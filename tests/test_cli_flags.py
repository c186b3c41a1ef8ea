"""How all commands read flags, help and YAML, and what they write without a terminal."""

import os
import re
from types import SimpleNamespace

import pytest
from cli_case import refused
from transformers.debug_utils import DebugOption

from trl_ext.cli import BY_DATACLASS, main
from trl_ext.cli.given_flags import without_debug
from trl_ext.cli.logged_lines import logged_line
from trl_ext.cli.plain_terminal import BARS, plain_without_terminal

COMMANDS = (*BY_DATACLASS, "demo", "generate", "plan")
GENERATE = "prompts: none.jsonl\noutput: samples.parquet\nmodel: model\nreward: [a.py:f, b.py:g]\ntop-k: 3\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def shown(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert raised.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_fits_80_columns_in_one_layout(command, here, capsys):
    told = shown(capsys, command, "--help")
    assert max(map(len, told.splitlines())) <= 80 and "\x1b" not in told
    assert told.startswith(f"usage: trl-ext {command}") and "[further options]" in told
    assert told.index("--config FILE.yaml") < told.index("--debug: show the traceback")
    assert len(re.findall(r"^ *--debug", told, flags=re.MULTILINE)) == 1


@pytest.mark.parametrize(("command", "uses"), {"label": 2, "score": 2, "evaluate": 2, "probe": 1}.items())
def test_usage_has_a_call_for_each_use(command, uses, here, capsys):
    usage, _, rest = shown(capsys, command, "--help").partition("\n\n")
    calls = usage.removeprefix("usage: ").split("\n   or: ")
    assert len(calls) == uses and all(call.startswith(f"trl-ext {command} ") for call in calls)
    assert {flag for call in calls for flag in re.findall(r"--\w+", call)} <= {*re.findall(r"--\w+", rest)}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_that_there_is_not(command, here, capsys):
    told = refused(capsys, command, "--confg", "x.yaml")
    assert f"\ntrl-ext {command}: error: there is no flag --confg." in told
    assert told.startswith(f"usage: trl-ext {command}")


TWICE = {
    "ppo": "--beta 0.1 --beta 0.2",
    "reward": "--output_dir a --output-dir b",
    "raft": "--load_in_8bit --load_in_8bit false",
    "rest": "--seed 1 --seed=2",
    "score": "--output a --output b",
    "evaluate": "--seed 1 --seed 2",
    "report": "--output a --output b",
    "export": "--to hf --to vllm",
    "demo": "--quick --quick",
    "generate": "--top-k 1 --top_k 2",
    "plan": "--shared --no-shared",
    "probe": "--limit 1 --limit 2",
    "label": "--output a --output b",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_of_one_value_may_be_given_once(command, here, capsys):
    told = refused(capsys, command, *TWICE[command].split())
    assert "it may be given once; there is --" in told
    assert "it may be given once" in refused(capsys, command, "--config", "a.yaml", "--config=b.yaml")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("ppo --reward_funcs r.py:a --reward-funcs none.py:f --dataset_name x.jsonl", "no such file"),
        ("report a --output x.htm --runs b", "--output x.htm: expected a name that ends in .html"),
    ],
)
def test_a_flag_of_several_values_gathers_them(argv, told, here, capsys):
    assert told in refused(capsys, *argv.split())


def test_words_may_follow_flags(here, capsys, monkeypatch):
    taken = []
    monkeypatch.setattr("trl_ext.cli.report_runs.read_runs", lambda runs: taken.extend(runs) or [])
    monkeypatch.setattr("trl_ext.cli.report_runs.report", lambda runs, output: output)
    main(["report", "one", "--output", "a.html", "two"])
    assert taken == ["one", "two"] and "a.html" in capsys.readouterr().out
    assert "'b' belongs to no flag" in refused(capsys, "score", "a", "--seed", "1", "b")
    assert "'b' belongs to no flag" in refused(capsys, "plan", "a", "--lora", "4", "b")
    assert "'x' belongs to no flag" in refused(capsys, "demo", "--quick", "x")


def test_a_command_that_there_is_not(here, capsys):
    assert "there is no command 'plna'. Did you mean plan?" in refused(capsys, "plna", "x")
    assert refused(capsys).startswith("usage: trl-ext COMMAND")


def test_generate_reads_yaml_and_flags_overrule_it(here, capsys, monkeypatch):
    (here / "g.yaml").write_text(GENERATE)
    taken = []
    monkeypatch.setattr("trl_ext.cli.generate_run.generate", taken.append)
    main(["generate", "--config", "g.yaml"])
    main(["generate", "--config", "g.yaml", "--reward", "c", "--reward", "d", "--top_k", "5"])
    assert [args.reward for args in taken] == [["a.py:f", "b.py:g"], ["c", "d"]]
    assert [args.top_k for args in taken] == [3, 5] and str(taken[0].prompts) == "none.jsonl"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top-kk: 1\n", "there is no option 'top-kk'. Did you mean 'top_k'?"),
        ("top_k: many\n", "invalid int value: 'many'"),
        ("top_k: [1, 2]\n", "expected one value"),
        ("top_k: {a: 1}\n", "expected text or a number"),
        ("generator: nobody\n", "invalid choice: 'nobody'"),
        ("env: {PATH: x}\n", "would set PATH"),
    ],
)
def test_a_yaml_file_of_generate_that_is_wrong(text, message, here, capsys):
    (here / "g.yaml").write_text(f"prompts: a.jsonl\noutput: b.parquet\n{text}")
    assert message in refused(capsys, "generate", "--config", "g.yaml")


def test_switches_and_words_in_yaml(here, capsys, monkeypatch):
    (here / "p.yaml").write_text("model: llama-2-7b\nshared: true\nvalue_model: false\ngpu: 24GB\nbits: 8\n")
    main(["plan", "--config", "p.yaml"])
    assert "fits" in capsys.readouterr().out
    (here / "p.yaml").write_text("model: llama-2-7b\nshared: 3\n")
    assert "shared: 3: expected true or false" in refused(capsys, "plan", "--config", "p.yaml")


DEBUGGED = {
    "label": "--output a",
    "demo": "--seed -1",
    "generate": "--prompts no.jsonl --output a.parquet",
    "plan": "llama-2-7b --gpu big",
    "export": "",
    "report": "",
    "score": "",
    "evaluate": "",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_debug_shows_the_traceback(command, here, capsys):
    options = DEBUGGED.get(command, "--dataset_name no.jsonl").split()
    with pytest.raises(SystemExit, match="2"):
        main([command, *options, "--debug"])
    told = capsys.readouterr().err
    assert "Traceback (most recent call last)" in told and told.splitlines()[-1].startswith(
        f"trl-ext {command}: error"
    )
    refused(capsys, command, *options)


def test_transformers_option_of_the_same_name(here, capsys, monkeypatch):
    """`debug: underflow_overflow` is its own, in YAML and as a flag's value; true is not."""
    taken = []
    monkeypatch.setattr("trl_ext.cli.train_ppo.run", lambda command, argv: taken.append(argv))
    main(["ppo", "--debug", "underflow_overflow", "--debug"])
    assert taken == [["--debug", "underflow_overflow"]]
    monkeypatch.undo()
    monkeypatch.chdir(here)
    (here / "d.yaml").write_text("debug: true\n")
    assert "For the traceback, give the flag --debug" in refused(capsys, "ppo", "--config", "d.yaml")
    assert without_debug(["--debug=underflow_overflow"]) == (["--debug=underflow_overflow"], False)


@pytest.mark.parametrize("given", [["--config", "d.yaml"], ["--debug", "underflow_overflow"]])
def test_it_reaches_transformers(given, here, monkeypatch):
    (here / "d.yaml").write_text("debug: underflow_overflow\n")
    taken = []
    monkeypatch.setattr("trl_ext.cli.training_command.train_rows", lambda data, streamed: None)
    monkeypatch.setattr("trl_ext.cli.training_command.eval_rows", lambda data, asked: None)
    monkeypatch.setattr(
        "trl_ext.cli.training_command.gathered", lambda asked, *rows: taken.append(asked.args) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        main(["ppo", *given])
    assert list(taken[0].debug) == [DebugOption.UNDERFLOW_OVERFLOW]


def test_bars_are_for_terminals(monkeypatch):
    """tqdm reads this as it is imported, which a command's process has not done yet."""
    monkeypatch.delenv(BARS, raising=False)
    with plain_without_terminal():
        assert os.environ[BARS] == "1"
    assert BARS not in os.environ
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: True))
    with plain_without_terminal():
        assert BARS not in os.environ
    monkeypatch.undo()


def test_a_line_of_a_step_fits_80_columns():
    names = ["score", "kl_per_completion", "completions/mean_length", "explained_variance"]
    logs = dict.fromkeys(names, -123.456) | {"loss": 1.0, "other": 2.0}
    line = logged_line(1000, 3000, logs, names)
    assert line == "step 1000/3000: score -123.5, kl -123.5, length -123.5, explained_variance\n    -123.5"
    assert logged_line(2, 3, {"loss": 0.5}, names) == "step 2/3: loss 0.5"
    held_out = {f"eval_{name}": 1.0 for name in names}
    assert logged_line(2, 3, held_out, names).startswith("step 2/3, held out: score 1, kl 1")
    assert logged_line(2, 3, {"other": 2.0}, names) == ""
