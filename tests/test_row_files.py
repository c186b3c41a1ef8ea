"""Files of rows: rows stay rows, also those that libraries would change."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from trl_ext.trainer_kit.row_files import UNREADABLE, json_rows, read_rows

ODD = [
    {"when": "2024-01-01", "at": "2024-01-01T00:00:00Z"},  # datetimes to Dataset.from_json
    {"when": "007", "count": 2**63},  # a float
    {"when": "NA", "count": None, "share": 1.0},  # a column that the first row lacks, to Dataset.from_list
    {"when": "two lines\u2028in one", "messages": [{"role": "user", "content": "null"}, {"role": "tool"}]},
]


def written(path: Path, rows: list, encoding="utf-8") -> Path:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = f"[{', '.join(lines)}]" if path.suffix == ".json" else "\n\n".join(lines) + "\n  \n"
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_rows_are_what_was_written(tmp_path, name, encoding):
    assert list(json_rows(written(tmp_path / name, ODD, encoding))) == ODD


def test_half_of_a_character_becomes_one_that_files_take(tmp_path):
    """As JSON has it that was cut between the two halves of an emoji; a table cannot hold it."""
    half, whole = {"\ud83d": ["a\ud83d", {"b": "\ude00"}]}, {"prompt": "\ud83d\ude00"}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [half, whole])))
    assert list(json_rows(tmp_path / "a.jsonl")) == [
        {"\ufffd": ["a\ufffd", {"b": "\ufffd"}]},
        {"prompt": "\U0001f600"},
    ]
    (tmp_path / "a.json").write_text(json.dumps([{"prompt": "a\ud83d"}]))
    assert read_rows(tmp_path / "a.json")["prompt"][:] == ["a\ufffd"]


def test_lines_are_read_one_at_a_time(tmp_path):
    path = written(tmp_path / "a.jsonl", ODD)
    path.write_text(path.read_text(encoding="utf-8") + "damaged", encoding="utf-8")
    rows = json_rows(path)
    assert [next(rows) for _ in ODD] == ODD
    with pytest.raises(ValueError, match="Expecting value"):
        next(rows)


@pytest.mark.parametrize("line", ['{"a":', "[1]", "nothing", '{"a": 1} {'])
def test_a_damaged_line_is_named_as_the_file_counts(line, tmp_path):
    """Empty lines count, and what looks like an end of line within a text does not."""
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"a": "x\u2028y"}}\n\n{line}\n{{"a": 1}}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 3\b"):
        list(json_rows(path))
    with pytest.raises(ValueError, match=r"line 3\b"):
        read_rows(path)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_column_has_the_values_of_all_rows(tmp_path, name):
    rows = [{"a": "2024-01-01"}, {"a": "b", "n": 1}, {"n": 2**53 + 1}]
    filled = [{"a": "2024-01-01", "n": None}, {"a": "b", "n": 1}, {"a": None, "n": 2**53 + 1}]
    assert read_rows(written(tmp_path / name, rows)).to_list() == filled


def test_text_of_a_csv_file_stays_text_and_whole_numbers_whole(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufefftext,number\n007,1\nNA,\n"two\nlines",3\n', encoding="utf-8")
    rows = read_rows(path, text=["text", "not there"])  # Dataset.from_csv: None for "NA", 1.0 for 1
    assert rows.to_dict() == {"text": ["007", "NA", "two\nlines"], "number": [1, None, 3]}
    assert all(type(number) is int for number in rows["number"] if number is not None)


def test_parquet_is_read_as_datasets_wrote_it(tmp_path):
    """Messages with other keys are JSON inside: pyarrow alone would give text."""
    written(tmp_path / "a.jsonl", [ODD[3]])
    rows = Dataset.from_json(str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "cache"))
    rows.to_parquet(tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet").to_list() == rows.to_list()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b"5"),
        ("a.json", b'"a"'),
        ("a.jsonl", b"5"),
        ("a.jsonl", b"\xff"),
        ("a.jsonl", b'{"n": 18446744073709551616}'),
        ("a.parquet", b"PAR1"),
        ("a.csv", b"a,b\n1\n"),
    ],
)
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UNREADABLE):
        read_rows(tmp_path / name)


def test_a_categorical_column(tmp_path):
    pq.write_table(pa.table({"a": pa.array(["x", "y"]).dictionary_encode()}), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet")["a"][:] == ["x", "y"]
