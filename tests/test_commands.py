"""How commands end: one line for what a user can mend or has stopped, a traceback for a fault."""

import errno
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from forked import start
from safetensors import SafetensorError
from tiny import byte_tokenizer, tiny_llama

from trl_ext.cli import main
from trl_ext.trainer_kit.commands import TRACEBACK, ends_in_one_line
from trl_ext.trainer_kit.seeds import check_seed
from trl_ext.trainer_kit.whole_files import written_whole

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from trl_ext.cli import main; main()"]
FULL = "No space left on device. Make room on that disk, then give the same command again."


def ended(capsys, run) -> tuple[int, str]:
    """The exit code of a command that runs this, and what it has said on stderr."""
    with pytest.raises(SystemExit) as raised, ends_in_one_line("cmd", when_stopped="Go on so."):
        run()
    return raised.value.code, capsys.readouterr().err


def raises(error: BaseException):
    def run():
        raise error

    return run


def test_our_own_words_are_told_as_they_are(capsys):
    told = ended(capsys, lambda: check_seed(-1, call="--seed -1"))
    assert told == (2, "cmd: error: --seed -1: expected a whole number in [0, 2³²). Give e.g. 0.\n")


def test_words_of_others_are_one_line_with_their_place(capsys):
    code, told = ended(capsys, raises(ValueError("over\n  several lines")))
    assert code == 2 and told.count("\n") == 1
    assert told.startswith("cmd: error: over several lines (ValueError in ")
    assert "test_commands.py, line " in told and f"{TRACEBACK}=1 shows the way there" in told


def test_a_fault_keeps_its_traceback():
    with pytest.raises(KeyError), ends_in_one_line("cmd", when_stopped=""):
        {}["missing"]
    with pytest.raises(SafetensorError), ends_in_one_line("cmd", when_stopped=""):
        raise SafetensorError("Error while deserializing header")


def test_the_traceback_of_bad_input_can_be_asked_for(capsys, monkeypatch):
    monkeypatch.setenv(TRACEBACK, "1")
    code, told = ended(capsys, lambda: check_seed("x", call="--seed x"))
    assert code == 2 and "in check_seed" in told and told.splitlines()[-1].startswith("cmd: error: --seed x")


def test_what_the_system_refuses(capsys):
    here = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/a.json")
    assert ended(capsys, raises(here)) == (2, f"cmd: error: out/a.json: {FULL}\n")
    rust = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert f"cmd: error: {FULL} (SafetensorError in " in ended(capsys, raises(rust))[1]
    code, told = ended(capsys, raises(PermissionError(errno.EACCES, "Permission denied", "prompts.jsonl")))
    assert (code, told) == (
        2,
        "cmd: error: prompts.jsonl: Permission denied. Give another place, or ask for the permission.\n",
    )


def test_what_could_not_be_written_has_no_number(tmp_path, capsys):
    def run():
        with written_whole(tmp_path / "a.json"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    code, told = ended(capsys, run)
    assert code == 2 and told.startswith(f"cmd: error: could not write {tmp_path / 'a.json'} (Read-only file system).")


def test_of_several_processes_one_speaks(capsys, monkeypatch):
    """The first of a machine; what another one has found that it could not, it hands on."""
    failed = RuntimeError("process 1 of 2 failed: ValueError: no.")
    assert ended(capsys, raises(failed)) == (2, f"cmd: error: {failed}\n")
    with pytest.raises(RuntimeError, match="a fault"), ends_in_one_line("cmd", when_stopped=""):
        raise RuntimeError("a fault")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ended(capsys, lambda: check_seed(-1, call="--seed -1")) == (2, "")
    assert ended(capsys, raises(KeyboardInterrupt())) == (130, "")


def test_ctrl_c_says_how_to_go_on(capsys):
    assert ended(capsys, raises(KeyboardInterrupt())) == (130, "cmd: stopped. Go on so.\n")


def test_a_warning_of_ours_is_one_line(tmp_path):
    """Whichever line it is said of; those of others, and all outside a command, keep their place."""
    code = (
        "import warnings; from datasets import Dataset; from trl_ext.trainer_kit.commands import ends_in_one_line\n"
        "from trl_ext.sequences.unread_columns import warn_of_unread\n"
        "rows = Dataset.from_dict({'prompt': ['a'], 'input': ['b\\n c']})\n"
        "with ends_in_one_line('cmd', when_stopped=''):\n"
        "    warn_of_unread(rows, ['prompt'], call='--prompts x')\n"
        "    warnings.warn('of others')\n"
        "warnings.warn('outside')\n"
    )
    path = tmp_path / "program.py"
    path.write_text(code)
    told = subprocess.run([sys.executable, path], check=True, capture_output=True, text=True).stderr.splitlines()
    assert told[0].startswith("cmd: warning: --prompts x has a column 'input', of which nothing is read, e.g. 'b")
    assert [line.partition(" ")[0] for line in told[1::2]] == [f"{path}:6:", f"{path}:7:"]
    assert told[2::2] == ["  warnings.warn('of others')", "  warnings.warn('outside')"]


def test_a_reader_that_goes_is_told_nothing():
    program = "from trl_ext.cli import main; main(['plan', 'llama-2-7b', '--gpu', '24GB']); print('x' * 99999)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


@pytest.mark.parametrize("count", [1, 99999])  # the first is written no earlier than at the end
def test_a_print_to_a_reader_that_has_gone(count):
    program = (
        "from trl_ext.trainer_kit.commands import ends_in_one_line\n"
        f"with ends_in_one_line('cmd', when_stopped=''): print('x' * {count})"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], env=buffered, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_output():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "plan", "qwen3-8b", "--gpu", "24GB"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2 and done.stderr.decode().startswith(f"trl-ext plan: error: {FULL}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("options", "code"), [("plan llama-2-7b --gpu 24GB", 0), ("plan llama-2-7b --gpu x", 2)])
def test_what_has_ended_keeps_its_code(number, options, code, tmp_path):
    """While threads of others end, and while Python takes down what it has loaded."""
    slow = "import threading, time, sys\nthreading.Thread(target=time.sleep, args=[30]).start()\n"
    listens = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    (tmp_path / "program.py").write_text(f"{listens}{slow}from trl_ext.cli import main\nmain()")
    command = [sys.executable, tmp_path / "program.py", *options.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        told = (process.stderr if code else process.stdout).readline()
        time.sleep(2)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == code and told and "Traceback" not in err + out


@pytest.mark.parametrize(
    ("command", "keeps"), [("evaluate", False), ("export", False), ("probe", False), ("score", True), ("label", True)]
)
def test_only_what_goes_on_says_so(command, keeps, capsys, monkeypatch):
    def stopped(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"trl_ext.cli.{command}.main", stopped)
    code, told = ended(capsys, lambda: main([command]))
    assert code == 130 and ("goes on from there" in told) == keeps and ("begins anew" in told) != keeps


def test_generate_is_stopped_and_goes_on(tmp_path, monkeypatch):
    """Ctrl-C while a reward takes its time; the same command then samples nothing again."""
    monkeypatch.chdir(tmp_path)
    tiny_llama(byte_tokenizer()).save_pretrained("model")
    byte_tokenizer().save_pretrained("model")
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "go"}))
    slow = (
        "import pathlib, time\ndef slow(completions, **columns):\n    pathlib.Path('here').touch()\n    time.sleep(60)"
    )
    Path("rewards.py").write_text(slow)
    options = ["generate", "--prompts", "prompts.jsonl", "--model", "model", "--output", "samples.parquet"]
    options += ["--num-generations", "2", "--max-completion-length", "4", "--reward", "rewards.py:slow"]
    # a job in the background would not listen
    listens = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    Path("command.py").write_text(f"{listens}from trl_ext.cli import main\n\nmain()")
    process = start("command.py", *options, output=tmp_path / "told")
    while not Path("here").exists() and process.is_alive():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    told = Path("told.err").read_text()
    assert process.exitcode == 130 and "Traceback" not in told
    assert told.splitlines()[-1] == (
        "trl-ext generate: stopped. What is sampled is kept: the same command goes on from there."
    )

    Path("rewards.py").write_text("def slow(completions, **columns):\n    return [1.0] * len(completions)")
    monkeypatch.setattr("trl_ext.cli.generate_run.make_policy", None)
    main(options)
    assert pq.read_table("samples.parquet")["score"].to_pylist() == [1.0, 1.0]


def test_a_program_elsewhere_has_words_of_its_own(tmp_path, capsys):
    (tmp_path / "other.py").write_text("def run():\n    raise ValueError('--x: no.')")
    run = runpy.run_path(str(tmp_path / "other.py"))["run"]
    for folder, words in ((tmp_path, "--x: no.\n"), (ROOT / "trl_ext", "--x: no. (ValueError in ")):
        with pytest.raises(SystemExit), ends_in_one_line("cmd", when_stopped="", folder=folder):
            run()
        assert capsys.readouterr().err.startswith(f"cmd: error: {words}")


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("examples/rlhf_chain.py", ["--pairs", "no", "--prompts", "no"], "--model no/model: it cannot be loaded"),
        (
            "examples/train_7b_24gb.py",
            ["--sft-data", "no", "--pairs", "no", "--prompts", "no", "--seed", "-1"],
            "--seed -1: expected a whole number",
        ),
        ("trl_ext/demo/make_assets.py", ["--seed", "-1"], "--seed -1: expected a whole number"),
    ],
)
def test_programs_end_like_commands(tmp_path, monkeypatch, capsys, script, options, message):
    monkeypatch.chdir(tmp_path)
    options = [*options, "--output-dir", "out"] + (["--model", "no/model"] if "examples" in script else [])
    monkeypatch.setattr(sys, "argv", [script, *options])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    name = Path(script).name if "examples" in script else "make_assets"
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{name}: error: {message}")
    assert list(tmp_path.iterdir()) == []
