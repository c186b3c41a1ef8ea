"""`trl-ext score`, in process."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_case import write_rows
from datasets import Dataset
from self_training_case import trainer
from tiny import byte_tokenizer, tiny_reward_model

from trl_ext.cli import main
from trl_ext.cli.score_rows import Columns, row_parts, table_schema

ROWS = [
    {"prompt": "why?", "completion": " so", "wanted": 3, "ended": True},
    {"prompt": "why?", "completion": " because", "wanted": 3, "ended": True},
    {"prompt": "go", "completion": " on", "wanted": 3, "ended": False, "note": "late"},
    {"prompt": "go", "completion": " now", "wanted": 9, "ended": True},
    {"prompt": "stop", "completion": " it", "wanted": 3, "ended": True},
]
REWARDS = """
calls = []

def nearness(completions, wanted, completion_ended, **columns):
    calls.append(len(completions))
    return [-float(abs(len(text) - want)) + end for text, want, end in zip(completions, wanted, completion_ended)]

def some(completions, **columns):
    return [None if "n" in text else float(len(text)) for text in completions]

def fails(completions, **columns):
    if " now" in completions:
        raise KeyError("gone")
    return [0.0] * len(completions)
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def score(*options, samples="rows.jsonl", output="out.parquet", reward="rewards.py:nearness") -> list[dict]:
    given = [] if reward is None else ["--reward_funcs", *reward.split(), "--output", output]
    main(["score", "--samples", samples, *given, *options])
    return [] if reward is None else pq.read_table(output).to_pylist()


def refused(capsys, *options, **given) -> str:
    with pytest.raises(SystemExit) as raised:
        score(*options, **given)
    told = capsys.readouterr().err
    assert raised.value.code == 2 and "Traceback" not in told, told
    return told


def test_scores_by_hand_beside_what_was_there(here, capsys):
    rows = score("--rows_per_part", "2")
    assert [row["score"] for row in rows] == [1.0, -4.0, 0.0, -4.0, 1.0]
    assert [row["reward/nearness"] for row in rows] == [row["score"] for row in rows]
    assert [row["note"] for row in rows] == [None, None, "late", None, None]  # of the second part alone
    assert "out.parquet: 5 rows, mean score -1.2" in capsys.readouterr().out
    assert not Path("out").exists()


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_the_same_of_every_kind_of_file(suffix, here):
    table = pa.Table.from_pylist([{"note": None} | row for row in ROWS])
    if suffix == ".json":
        (here / "rows.json").write_text(json.dumps(ROWS))
    elif suffix == ".csv":
        Dataset(table).to_csv(here / "rows.csv")
    else:
        pq.write_table(table, here / "rows.parquet")
    rows = score("--rows_per_part", "2", samples=f"rows{suffix}")
    assert [row["score"] for row in rows] == [1.0, -4.0, 0.0, -4.0, 1.0]


def test_several_rewards_and_weights(here, capsys):
    rows = score("--reward_weights", "2", "0", reward="rewards.py:nearness rewards.py:some")
    assert rows[0]["score"] == 2.0 and rows[3]["reward/some"] is None and rows[3]["score"] == -8.0
    rows = score(reward="rewards.py:some", output="some.parquet")
    assert [row["score"] for row in rows] == [3.0, 8.0, None, None, 3.0]
    assert "2 without a score" in capsys.readouterr().out


def test_it_goes_on_where_it_was_killed(here, capsys):
    with pytest.raises(KeyError):
        score("--rows_per_part", "2", reward="rewards.py:fails")
    assert Path("out/scored-00000.parquet").exists() and not Path("out.parquet").exists()
    (here / "rewards.py").write_text(REWARDS.replace('" now" in', '" so" in'))  # now the first part would fail
    rows = score("--rows_per_part", "2", reward="rewards.py:fails")
    assert [row["score"] for row in rows] == [0.0] * 5
    score("--rows_per_part", "2", reward="rewards.py:fails")  # and is complete
    assert "prompts_per_part" in refused(capsys, "--rows_per_part", "3", reward="rewards.py:fails")


def test_another_file_or_another_reward_is_no_continuation(here, capsys):
    score()
    told = refused(capsys, reward="rewards.py:some")
    assert "reward_funcs" in told
    (here / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert "samples" in refused(capsys)


def test_a_grow_is_scored_anew_by_a_reward_model(here):
    raft = trainer(here / "raft", num_stages=1)
    raft.train()
    grow = next(Path("raft").glob("grow-*.parquet"))
    before = pq.read_table(grow)
    tiny_reward_model(byte_tokenizer()).save_pretrained("scorer")
    byte_tokenizer().save_pretrained("scorer")
    after = score(samples=str(grow), reward="scorer", output="again.parquet")
    assert [row["score_before"] for row in after] == before["score"].to_pylist()
    assert [row["reward/even_letters"] for row in after] == before["reward/even_letters"].to_pylist()
    assert [row["score"] for row in after] == [row["reward/scorer"] for row in after]
    twice = score(samples="again.parquet", reward="scorer", output="third.parquet")
    assert {"score_before", "score_before_2", "reward/scorer", "reward/scorer_2"} <= twice[0].keys()
    main(["score", "--samples", str(grow), "--pairs", "best-worst", "--pairs_output", "pairs.jsonl"])
    pairs = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    assert pairs and all(pair["score_chosen"] > pair["score_rejected"] for pair in pairs)


ANSWERS = """
def exact(completions, answer, **columns):
    return [float(one) for one in answer]
"""


def sampled(here, **columns) -> tuple[str, list[int]]:
    """A Grow of the prompts in prompts.jsonl, which have further columns; and the rows of its samples."""
    prompts = ["why?", "go", "why?", "what"]  # one is there twice, with another answer
    columns = {"answer": [3, 1, 4, 1], **columns}
    raft = trainer(here / "raft", num_stages=1, prompts=prompts, columns=columns)
    raft.train()
    Dataset.from_dict({"prompt": prompts} | columns).to_json(here / "prompts.jsonl")
    (here / "answers.py").write_text(ANSWERS)
    grow = next(Path("raft").glob("grow-*.parquet"))
    return str(grow), pq.read_table(grow)["row"].to_pylist()


def test_columns_of_the_prompts_reach_the_rewards_of_a_grow(here, capsys):
    grow, rows = sampled(here)
    told = refused(capsys, samples=grow, reward="answers.py:exact")
    assert "reads the column `answer`" in told and "'completion_ids'" in told and "--prompts FILE" in told
    after = score("--prompts", "prompts.jsonl", "--rows_per_part", "5", samples=grow, reward="answers.py:exact")
    assert [row["score"] for row in after] == [[3.0, 1.0, 4.0, 1.0][row] for row in rows]
    assert "answer" not in after[0]
    again = score("--prompts", "prompts.jsonl", samples="out.parquet", reward="answers.py:exact", output="b.parquet")
    assert [row["score"] for row in again] == [row["score"] for row in after]


def test_prompts_in_another_order_are_found_by_their_text(here, capsys):
    grow, rows = sampled(here)
    turned = [{"question": text, "answer": n} for text, n in [("what", 7), ("other", 0), ("go", 8), ("why?", 9)]]
    (here / "turned.json").write_text(json.dumps(turned))
    given = {"samples": grow, "reward": "answers.py:exact"}
    assert "no column 'prompt'. Name the one with the prompts by --prompts_column" in refused(
        capsys, "--prompts", "turned.json", **given
    ).replace("\n", " ")
    after = score("--prompts", "turned.json", "--prompts_column", "question", **given)
    assert [row["score"] for row in after] == [[9.0, 8.0, 9.0, 7.0][row] for row in rows]
    turned[0]["answer"] = 6
    (here / "turned.json").write_text(json.dumps(turned))
    assert "prompts" in refused(capsys, "--prompts", "turned.json", "--prompts_column", "question", **given)


PRODUCT = """
from trl_ext import LengthIncentive, RepetitionPenalty, Route, RoutedProduct
product = RoutedProduct([Route("open", [LengthIncentive()]), Route("closed", [RepetitionPenalty()])])
"""


def test_a_product_by_query_type_scores_a_grow(here, capsys):
    grow, rows = sampled(here, query_type=["open", "closed"] * 2)
    (here / "product.py").write_text(PRODUCT)
    for reward in ("r3", "product.py:product"):
        told = refused(capsys, samples=grow, reward=reward)
        assert "expected a column `query_type`" in told and "--prompts FILE" in told and "'completion_ids'" in told
    after = score("--prompts", "prompts.jsonl", samples=grow, reward="product.py:product")
    assert len(after) == len(rows) and all(row["score"] is not None for row in after)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "else", "answer": 1}], "none of its 1 prompts is that of a sample, 'why?'"),
        ([{"prompt": "why?", "answer": n} for n in (1, 2)], "its rows 0 and 1 have one prompt, 'why?', and different"),
        (
            [{"prompt": row["prompt"], "answer": 1, "wanted": 2} for row in ROWS[1:]],
            "the column 'wanted' is in --samples",
        ),
        ([{"prompt": 3, "answer": 1}], "--prompts p.json"),
        ([], "it has no rows"),
    ],
)
def test_prompts_that_do_not_fit(rows, message, here, capsys):
    (here / "p.json").write_text(json.dumps(rows))
    (here / "answers.py").write_text(ANSWERS)
    assert message in refused(capsys, "--prompts", "p.json", reward="answers.py:exact")


def test_prompts_without_a_reward(here, capsys):
    pairs = ("--pairs", "best-worst", "--pairs_output", "p.jsonl")
    assert "--prompts without --reward_funcs" in refused(capsys, "--prompts", "rows.jsonl", *pairs, reward=None)


def test_pairs_by_hand(here, capsys):
    score("--pairs", "best-worst", "--pairs_output", "pairs.parquet")
    pairs = pq.read_table("pairs.parquet").to_pylist()
    assert [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ("why?", " so", " because"),
        ("go", " on", " now"),
    ]
    assert pairs[1]["score_chosen"] == 0.0 and pairs[1]["score_rejected"] == -4.0
    assert "2 pairs of 3 prompts with a score" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_the_same_command_again_leaves_its_pairs(suffix, here, capsys):
    pairs = Path(f"pairs.{suffix}")
    score("--pairs", "best-worst", "--pairs_output", str(pairs))
    before = pairs.read_bytes()
    capsys.readouterr()
    score("--pairs", "best-worst", "--pairs_output", str(pairs))
    assert "Complete already. pairs" in capsys.readouterr().out and pairs.read_bytes() == before
    told = refused(
        capsys, "--pairs", "best-worst", "--pairs_output", str(pairs), reward="rewards.py:some", output="o.parquet"
    )
    assert "there is a file of that name with something else" in told and pairs.read_bytes() == before


def test_where_pairs_cannot_be_written_nothing_is_scored(here, capsys):
    for place in ("rows.jsonl/p.jsonl", "p.csv"):
        assert f"--pairs_output {place}" in refused(capsys, "--pairs", "best-worst", "--pairs_output", place)
    assert not Path("out.parquet").exists()


def test_messages_are_pairs_too(here):
    ask = [{"role": "user", "content": "why?"}]
    rows = [
        {"prompt": ask, "completion": [{"role": "assistant", "content": text}], "wanted": 1} for text in ("x", "long")
    ]
    write_rows(here / "chat.jsonl", rows)
    (here / "chat.py").write_text(
        "def short(completions, **columns):\n    return [-float(len(c[0]['content'])) for c in completions]\n"
    )
    score("--pairs", "best-worst", "--pairs_output", "p.jsonl", samples="chat.jsonl", reward="chat.py:short")
    pair = json.loads(Path("p.jsonl").read_text())
    assert pair["chosen"] == [{"role": "assistant", "content": "x"}] and pair["prompt"] == ask


def test_never_more_than_a_part_in_memory(here):
    schema, parts = table_schema(Path("rows.jsonl"), Columns("prompt", "completion"), size=2)
    tables = list(row_parts(Path("rows.jsonl"), schema, Columns("prompt", "completion"), size=2))
    assert parts == 3 and [len(table) for table in tables] == [2, 2, 1]
    assert all(table.schema == schema for table in tables)


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ([], {"samples": "none.jsonl"}, "there is no such file"),
        ([], {"samples": "cut.jsonl"}, "it cannot be read"),
        ([], {"samples": "empty.jsonl"}, "it has no rows"),
        ([], {"samples": "binary.parquet"}, "it cannot be read"),
        (["--prompt_column", "question"], {}, "no 'question'"),
        (["--completion_column", "answer"], {}, "no 'answer'"),
        ([], {"samples": "none.parquet"}, "there is no such file"),
        ([], {"output": "out.csv"}, "ends in .parquet"),
        ([], {"output": "rewards.py/out.parquet"}, "rewards.py"),
        (["--rows_per_part", "0"], {}, "expected at least 1"),
        (["--pairs", "all", "--pairs_output", "p.jsonl"], {}, "expected best-worst"),
        (["--pairs", "best-worst"], {}, "go together"),
        ([], {"reward": None}, "expected a reward"),
        (["--reward_weights", "1", "2"], {}, "expected one per reward function (1)"),
        (["--pairs", "best-worst", "--pairs_output", "rows.jsonl"], {}, "there is a file of that name"),
        (["--pairs", "best-worst", "--pairs_output", "p.jsonl"], {"reward": None}, "cannot be read as parquet"),
    ],
)
def test_what_is_refused(options, given, message, here, capsys):
    (here / "cut.jsonl").write_text('{"prompt": "a", "completion": "b", "wanted": 1}\n{"prom')
    (here / "empty.jsonl").write_text("")
    (here / "binary.parquet").write_bytes(b"PAR1" + bytes(64))
    assert message in refused(capsys, *options, **given)


def test_a_column_is_missed_before_a_model_is_loaded(here, capsys):
    write_rows(here / "few.jsonl", [{"prompt": "say it", "completion": " now"}])
    told = refused(capsys, samples="few.jsonl", reward="nowhere/model rewards.py:nearness")
    assert "reads the column `wanted`" in told and "nowhere" not in told


def test_a_column_that_a_reward_lacks(here, capsys):
    (here / "few.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    assert "reads the column `wanted`" in refused(capsys, samples="few.jsonl")


def test_its_own_file_is_not_written_over(here, capsys):
    pq.write_table(pa.Table.from_pylist(ROWS), here / "own.parquet")
    assert "that is the file that is read" in refused(capsys, samples="own.parquet", output="own.parquet")
    assert "did not write" in refused(capsys, output="own.parquet")
