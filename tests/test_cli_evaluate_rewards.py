"""`trl-ext evaluate --pairs`, in process, with models of a few numbers."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli_case import refused, write_rows
from tiny import byte_tokenizer, tiny_reward_model

from trl_ext import evaluate_reward
from trl_ext.cli import main

PAIRS = [
    {"question": f"say {i}", "chosen": " yes" * (1 + i % 3), "rejected": " no" * (1 + i % 2), "subset": "ab"[i % 2]}
    for i in range(40)
]
REWARDS = """
def longest(completions, **columns):
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    tokenizer = byte_tokenizer()
    for name, seed in (("one", 0), ("two", 1)):
        tiny_reward_model(tokenizer, seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    (tmp_path / "rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


GIVEN = ["--pairs", "pairs.jsonl", "--columns", "prompt=question", "--as_messages", "--reward_funcs"]


def test_rewards_side_by_side(here, capsys):
    pytest.importorskip("matplotlib")
    files = ["--png", "r.png", "--json", "r.json", "--output", "r.parquet"]
    main(["evaluate", *GIVEN, "one", "two", "rewards.py:longest", *files])
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 100
    for words in ("subset a", "length only", "two less one", "rewards.py:longest less one", "seen from", "r.parquet"):
        assert words in told
    said = json.loads(Path("r.json").read_text())
    rows = [row | {"prompt": row["question"]} for row in PAIRS]
    one, two = (evaluate_reward(name, rows, as_messages=True) for name in ("one", "two"))
    assert [each["name"] for each in said] == ["one", "two", "rewards.py:longest"]
    assert said[1]["summary"] == two.summary and said[1]["compared_with_first"] == two.compare(one)
    pairs = pq.read_table("r.parquet").to_pylist()
    assert [pair["gap"] for pair in pairs[:40]] == one.pairs["gap"][:] and len(pairs) == 120
    assert Path("r.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_unknown_of_one_row_is_null(here):
    write_rows(here / "one.jsonl", PAIRS[:1])
    given = ["--pairs", "one.jsonl", "--columns", "prompt=question", "--as_messages", "--reward_funcs", "one", "two"]
    main(["evaluate", *given, "--json", "r.json"])
    one, two = json.loads(Path("r.json").read_text(), parse_constant=pytest.fail)
    assert one["summary"]["ece_error"] is None and two["compared_with_first"]["log_loss"]["error"] is None


def test_given_again_it_says_so_and_writes_what_is_missing(here, capsys):
    pytest.importorskip("matplotlib")
    given = ["evaluate", *GIVEN, "rewards.py:longest", "--png", "r.png", "--json", "r.json", "--output", "r.parquet"]
    main(given)
    before = {name: Path(name).read_bytes() for name in ("r.png", "r.json", "r.parquet")}
    capsys.readouterr()
    main(given)
    assert capsys.readouterr().out.startswith("Complete already. r.png, r.json, r.parquet: by the same command.")
    Path("r.json").unlink()
    main(given)
    told = capsys.readouterr().out
    assert "subset a" in told and told.splitlines()[-1] == "r.json"
    assert {name: Path(name).read_bytes() for name in before} == before
    for flag, name in (("--png", "r.png"), ("--json", "r.json"), ("--output", "r.parquet")):
        asked = ["evaluate", *GIVEN, "rewards.py:longest", flag, name]
        assert f"{flag} {name}: it is what another command found; worst: 3 then, 1 now" in refused(
            capsys, *asked, "--worst", "1"
        )
        Path(name).write_text("[]")
        assert "did not write" in refused(capsys, *asked)


def test_a_subset_and_nothing_of_the_worst(here, capsys):
    main(["evaluate", *GIVEN, "rewards.py:longest", "--subsets", "a", "--worst", "0"])
    told = capsys.readouterr().out
    assert "20" in told and "subset b" not in told and "most wrong" not in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pairs", "pairs.jsonl"], "--reward_funcs: expected"),
        ([*GIVEN, "one", "one"], "named twice"),
        ([*GIVEN, "one", "--temperature", "0.5"], "--temperature: it does nothing beside --pairs"),
        ([*GIVEN, "one", "--dataset_name", "pairs.jsonl"], "--dataset_name: it does nothing beside --pairs"),
        (["two", *GIVEN, "one"], "--policies: it does nothing beside --pairs"),
        (["--policies", "two", "--png", "x.png"], "--png: it does nothing without --pairs"),
        ([*GIVEN, "one", "--png", "x.svg"], "ends in .png"),
        ([*GIVEN, "one", "--json", "rewards.py"], "ends in .json"),
        ([*GIVEN, "one", "--output", "nowhere.py/x.parquet"], ""),
        (
            [*GIVEN, "one", "--subsets", "c"],
            "--subsets c: no row has that value in a column of ['subset']. There are ['a', 'b']",
        ),
        ([*GIVEN, "one", "--worst", "-1"], "--worst -1"),
        (["--pairs", "none.jsonl", "--reward_funcs", "one"], "--pairs none.jsonl: there is no such file"),
        (["--pairs", "pairs.jsonl", "--reward_funcs", "one"], "--pairs: row 0 has no 'prompt'"),
        ([*GIVEN, "r3"], "query_type"),
    ],
)
def test_what_is_refused(options, message, here, capsys):
    if "nowhere.py/x.parquet" in options:
        Path("nowhere.py").write_text("")
    with pytest.raises(SystemExit) as raised:
        main(["evaluate", *options])
    told = capsys.readouterr().err
    assert raised.value.code == 2 and message in told and "Traceback" not in told
