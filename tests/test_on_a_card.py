"""`.ci/gpu`: its stages are there, one that fails loses no other's results, and its wheels are those that are lacking."""

import json
import os
import stat
import subprocess
import sys
import time
import zipfile
from importlib.metadata import distributions, version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from examples.benchmarks.memory import card_fp16, card_head, card_wheels, on_a_card
from examples.benchmarks.memory.card_rows import Row, imitation_rows, junit_rows, plan_rows, ppo_rows
from examples.benchmarks.memory.on_a_card import STAGES, Session, Stage, ended, table

SCRIPT = on_a_card.ROOT / ".ci" / "gpu"
MIB = 2**20


def written(folder: Path, content) -> Path:
    path = folder / "result"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def stage(name: str, program: str, limit: int = 30) -> Stage:
    """One that runs a program, which finds the path of its result in argv."""

    class Program(Stage):
        def command(self, result, seconds, rehearsal):
            return [sys.executable, "-c", program, str(result)]

    return Program(name, "", (), (), limit, lambda path: [Row(**row) for row in json.loads(path.read_text())])


# The script and its stages


def test_the_script_parses():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    assert SCRIPT.stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("one", STAGES, ids=[one.name for one in STAGES])
@pytest.mark.parametrize("rehearsal", [False, True])
def test_a_stage_names_what_there_is(one, rehearsal):
    """A module, whose source knows each option, and files."""
    command = one.command(Path("out"), 90.5, rehearsal)
    assert command[:3] == [sys.executable, "-m", one.module]
    source = Path(find_spec(one.module).origin).read_text()
    for word in command[3:]:
        assert "{" not in word and (not word.startswith("tests/") or (on_a_card.ROOT / word).exists())
        assert one.module == "pytest" or not word.startswith("--") or f'"{word}"' in source
    assert ("90" in command) == (one.name.startswith("ppo") and not rehearsal)


def test_all_tests_marked_gpu_are_run():
    marked = set(on_a_card.marked())
    assert {"tests/test_offloading.py", "tests/test_shared_base.py", "tests/test_memory_watch.py"} <= marked
    assert "tests/test_ppo_config.py" not in marked


def test_stages_should_fit():
    """The first three, which may take the longest, leave time for the others, and the sum of all is not far above."""
    limits = [one.limit for one in STAGES]
    assert on_a_card.BUDGET < 480 and sum(limits[:3]) < on_a_card.BUDGET - on_a_card.ENDING
    assert sum(limits) < 1.4 * on_a_card.BUDGET


# A session


def session(folder: Path, seconds: float = 100) -> Session:
    found = Session(folder, seconds, False)
    found.found["setting"] = "a card"
    return found


@pytest.fixture
def bare(monkeypatch):
    """Without wheels to unpack, and without asking what machine it is."""
    monkeypatch.setattr(on_a_card, "unpack", lambda folder, wheels: None)
    monkeypatch.setattr(on_a_card, "setting", lambda environment, rehearsal: "a card")


WRITES = "import json, sys; json.dump([{'what': 'speed', 'measured': '3'}], open(sys.argv[1], 'w'))"


def test_a_stage_that_fails_loses_no_other(tmp_path, bare):
    """What it had written before it failed is kept, and so is what a stage writes that is stopped."""
    stages = [
        stage("fails", f"{WRITES}; sys.exit(3)"),
        stage("hangs", f"{WRITES}; import time; time.sleep(60)", limit=2),
        stage("breaks off", "import sys; open(sys.argv[1], 'w').write('[{')"),
        stage("writes nothing", ""),
        stage("good", WRITES),
    ]
    assert session(tmp_path).run(stages) == 1
    found = json.loads((tmp_path / "results.json").read_text())["stages"]
    outcomes = {one["name"]: one["outcome"] for one in found}
    assert outcomes.pop("breaks off").startswith("no result: JSONDecodeError")
    assert outcomes.pop("writes nothing").startswith("no result: FileNotFoundError")
    assert outcomes == {"fails": "failed, exit code 3", "hangs": "stopped after 2 s", "good": "ok"}
    assert [len(one["rows"]) for one in found] == [1, 1, 0, 0, 1]
    assert (tmp_path / "table.md").read_text().count("| | speed | 3 |  |  |") == 3


def test_without_time_a_stage_is_not_begun(tmp_path, bare):
    assert session(tmp_path, seconds=10).run([stage("late", WRITES)]) == 1
    assert "| **late** | | no time left | 0 s | |" in (tmp_path / "table.md").read_text()


def test_an_interrupted_session_prints_what_it_has(tmp_path, bare, monkeypatch, capsys):
    def interrupted(command, environment, log, limit):
        Path(command[-1]).write_text(json.dumps([Row("speed", "3")]))
        raise KeyboardInterrupt

    monkeypatch.setattr(on_a_card, "ended", interrupted)
    monkeypatch.setattr(on_a_card.signal, "signal", lambda *args: None)  # this process's own stay
    monkeypatch.setattr(on_a_card, "STAGES", (stage("one", ""), stage("two", "")))
    assert on_a_card.main(["--output-dir", str(tmp_path)]) == 130
    printed = capsys.readouterr().out
    assert "| **one** | | interrupted |" in printed and "| | speed | 3 |" in printed and "two" not in printed
    assert printed.split("\n\nresults.json")[0].strip() == (tmp_path / "table.md").read_text().strip()


def test_a_stage_is_ended_with_all_that_it_has_started(tmp_path):
    child = f"import time; time.sleep(2); open({str(tmp_path / 'late')!r}, 'w')"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with (tmp_path / "log").open("w") as log:
        assert ended([sys.executable, "-c", program], dict(os.environ), log, 1) == "stopped after 1 s"
    time.sleep(2)
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize(
    ("found", "rehearsal", "match"),
    [
        ({"card": "CPU", "lacking": ["trl<2,>=1.12"]}, True, r"this machine lacks trl<2,>=1.12\. Bring wheels"),
        ({"card": "CPU", "lacking": []}, False, "expected a GPU, and torch sees none"),
    ],
)
def test_what_a_machine_lacks_is_said_first(monkeypatch, found, rehearsal, match):
    answer = SimpleNamespace(stdout=json.dumps(found | {"python": "3.12.1", "packages": "torch 2.11.0"}))
    monkeypatch.setattr(on_a_card.subprocess, "run", lambda *args, **kwargs: answer)
    with pytest.raises(SystemExit, match=match):
        on_a_card.setting({}, rehearsal)


# The table


def test_the_table_by_hand():
    rows = [Row("load, GiB", "5.10", "plan 5.00", "-2.0%")]
    found = {
        "setting": "2026-11-28; a card",
        "stages": [{"name": "ppo", "outcome": "ok", "seconds": 3.2, "rows": rows}],
    }
    assert table(found).splitlines() == [
        "2026-11-28; a card",
        "",
        "| stage | what | measured | beside | apart |",
        "|---|---|---|---|---|",
        "| **ppo** | | ok | 3 s | |",
        "| | load, GiB | 5.10 | plan 5.00 | -2.0% |",
    ]


def test_rows_of_pytest(tmp_path):
    cases = [
        '<testcase name="good"/>',
        '<testcase name="said"><system-out>hello</system-out></testcase>',
        '<testcase name="left"><skipped message="needs vLLM"/></testcase>',
        '<testcase name="bad"><failure message="assert 1 == 2&#10;more"/></testcase>',
        '<testcase name="broken"><error message="no card"/></testcase>',
    ]
    rows = junit_rows(written(tmp_path, f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"))
    assert rows[0] == Row("tests", "2 passed, 1 skipped, 2 failed")
    assert rows[1:] == [Row("bad", "failed", "assert 1 == 2"), Row("broken", "failed", "no card")]


def test_rows_of_ppo(tmp_path):
    """Scores are of the larger of two phases; what did not come to pass has a dash."""
    gib = 2**30
    result = {
        "row": "ppo", "bits": 4, "status": "stopped after 9 s", "micro_batch": 2, "warmed_up": False,
        "peaks": {"load": 4 * gib, "rewards": 10 * gib, "score": 8 * gib}, "peak": 12 * gib, "plan_peak": 15 * gib,
        "plan": {"load": 5 * gib, "score": 9 * gib, "train": 11 * gib}, "rates": {"generate": 99.6},
    }  # fmt: skip
    assert ppo_rows(written(tmp_path, [result, {"row": "ppo", "bits": 8, "status": "out of memory"}])) == [
        Row("ppo, 4 bits: load, GiB", "4.00", "plan 5.00", "+25.0%"),
        Row("ppo, 4 bits: score, GiB", "10.00", "plan 9.00", "-10.0%"),
        Row("ppo, 4 bits: train, GiB", "–", "plan 11.00"),
        Row("ppo, 4 bits: the card, GiB", "12.00", "plan 15.00", "+25.0%"),
        Row("ppo, 4 bits: tokens/s generated", "100", "with warming up"),
        Row("ppo, 4 bits: micro-batch", "2", "stopped after 9 s"),
        Row("ppo, 8 bits", "out of memory"),
    ]


def test_rows_of_the_plan_and_of_the_imitation_term(tmp_path):
    phases = [("load", 10, 10, 11), ("train", 21, 20, 23), ("run", 21, 20, 23)]
    rows = [
        {"case": "sft", "phase": name, "predicted": planned * MIB, "measured": size * MIB, "reserved": reserved * MIB}
        for name, planned, size, reserved in phases
    ]
    apart = "+5.0% (load +0.0%, train +5.0%); reserved +15.0%"
    assert plan_rows(written(tmp_path, rows)) == [Row("sft: peak, MiB", "20.00", "plan 21.00", apart)]
    kinds = [
        ["500", "without imitation", *"abcdef"],
        ["500", "with imitation", "2.9", "1.1", "1.0", "0.9", "70", "1.2"],
    ]
    assert imitation_rows(written(tmp_path, kinds)) == [
        Row("500 words, with imitation: × time, × peak", "1.1, 1.2", "FLOPs ask 1.0", "2.9 s, 70 MiB")
    ]


# What only this command measures


def test_both_heads_say_the_same(monkeypatch):
    monkeypatch.setitem(card_head.SIZES, "cpu", (6, 8, torch.float64))
    inputs = card_head.inputs_of(40, "cpu")
    for ours, theirs in zip(card_head.fused(*inputs), card_head.plain(*inputs), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5)
    time_row, memory_row, apart = card_head.rows_of(40, "cpu", repeats=1)
    assert time_row["what"] == "TRL's head, 40 words, ms" and memory_row["off"].endswith("×")
    assert float(apart["measured"]) < 1e-5


@pytest.mark.parametrize(("spoils", "said"), [(True, "ok"), (False, "WRONG")])
def test_skipped_steps_in_fp16_are_those_that_were_spoiled(tmp_path, monkeypatch, spoils, said):
    if not spoils:
        monkeypatch.setattr(card_fp16, "spoil", lambda trainer: None)
    row = card_fp16.row_of("reward model", card_fp16.reward, str(tmp_path), "cpu")
    assert row["off"].endswith(f"; {said}") and row["measured"] == f"{2 * spoils} skipped"


# The wheels


def test_what_is_carried_is_all_that_is_lacking():
    carried = card_wheels.carried()
    assert {"trl", "datasets", "bitsandbytes", "dill", "multiprocess", "xxhash", "pytest", "pluggy"} <= set(carried)
    assert not {"torch", "transformers", "numpy", "pandas", "pyarrow", "huggingface-hub", "ruff"} & set(carried)
    needed = card_wheels.closure([*card_wheels.project()["dependencies"], "pytest"])
    assert needed <= set(carried) | card_wheels.closure(card_wheels.THERE)


def test_wheels_are_those_of_the_versions_that_are_here(monkeypatch):
    assert f"trl=={version('trl')}" in card_wheels.pinned()
    monkeypatch.setattr(card_wheels, "carried", lambda: ["no-such-package"])
    with pytest.raises(SystemExit, match=r"no-such-package is not installed here.*Install the project first"):
        card_wheels.pinned()


def test_the_download_is_for_the_other_machine():
    command = card_wheels.download(["trl==1.16.0"], "3.12")
    assert command[-1] == "trl==1.16.0" and "--no-deps" in command
    assert command[command.index("--python-version") + 1] == "3.12"


def made_wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return path


def test_of_bitsandbytes_few_libraries_go_along(tmp_path):
    kept = ["bitsandbytes/libbitsandbytes_cpu.so", "bitsandbytes/libbitsandbytes_cuda130.so", "bitsandbytes/nn.py"]
    left = ["bitsandbytes/libbitsandbytes_cuda118.so", "bitsandbytes/libbitsandbytes_rocm64.so"]
    wheel = made_wheel(tmp_path, "bitsandbytes", dict.fromkeys(kept + left, "x"))
    card_wheels.reduce(wheel)
    assert sorted(zipfile.ZipFile(wheel).namelist()) == sorted(kept) and list(tmp_path.iterdir()) == [wheel]


def test_unpacked_wheels_are_importable_and_the_project_has_a_version(tmp_path):
    wheel = made_wheel(tmp_path, "a", {"a.py": "", "a-1.0.data/scripts/a": "", "a-1.0.dist-info/METADATA": "Name: a"})
    card_wheels.unpack(tmp_path / "site", [wheel])
    assert (tmp_path / "site" / "a.py").exists()
    assert {one.name for one in distributions(path=[str(tmp_path / "site")])} == {"a", "trl-ext"}
    other = made_wheel(tmp_path, "b", {"b-1.0.data/headers/b.h": ""})
    with pytest.raises(ValueError, match=r"unpack\(b-1.*b\.h has another place"):
        card_wheels.unpack(tmp_path / "site", [other])


def test_too_many_wheels_are_refused(tmp_path, monkeypatch):
    wheel = made_wheel(tmp_path, "a", {"a.py": "x" * 100})
    assert "a-1.0-py3-none-any.whl" in card_wheels.listing([wheel]) and "in .ci/wheels" in card_wheels.listing([wheel])
    monkeypatch.setattr(card_wheels, "LIMIT", 100)
    with pytest.raises(SystemExit, match=r"expected at most 0 MiB\. Leave some out"):
        card_wheels.listing([wheel])
