"""The script that makes a classifier of labels."""

import sys
from pathlib import Path
from runpy import run_module

import numpy as np
import pytest
from datasets import Dataset

from examples.query_types.train_classifier import (
    Row,
    calibration,
    fitted,
    one_sided,
    own_rows,
    query_hash,
    threshold,
    trained,
    without,
)
from trl_ext import label_query_types

OPEN = ["write a tale about {}", "invent a song about {}", "give advice about {}"]
CLOSED = ["count the letters of {}", "translate {} to french", "spell the word {}"]
NOUNS = ["rain", "dogs", "tea", "stone", "night", "bread", "wool", "ice"]


def made_rows(nouns=NOUNS):
    return [
        Row(form.format(noun), kind, "")
        for kind, forms in (("open", OPEN), ("closed", CLOSED))
        for form in forms
        for noun in nouns
    ]


def test_a_small_world_is_learned():
    classifier = trained(made_rows())
    assert classifier.p_open("write a tale about gold") > 0.7 > 0.3 > classifier.p_open("spell the word gold")
    assert classifier.scripts == ("LATIN",)


def test_scripts_of_the_labels_are_its_own():
    rows = [Row(f"{query.query} 시를 써 줘", query.query_type, "") for query in made_rows()]
    assert set(trained(rows).scripts) == {"LATIN", "HANGUL"}


def test_the_fit_is_the_minimum():
    """Σ losses + ‖w‖² / 2C has gradient 0, checked for the bias: Σ (p − y) = 0."""
    rows = made_rows(NOUNS[:3])[:-3]  # more open ones than closed
    classifier = fitted(rows)
    residual = sum(classifier.p_open(row.query) - (row.query_type == "open") for row in rows)
    assert residual == pytest.approx(0, abs=1e-4)


def test_calibration_finds_slope_and_shift():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000)
    targets = rng.random(20_000) < 1 / (1 + np.exp(-(2 * logits - 0.5)))
    assert calibration(logits, targets) == pytest.approx((2, -0.5), abs=0.1)


def test_threshold_by_hand():
    # sure of .55: half right; above .6 all are
    p_open, targets = np.array([0.55, 0.55, 0.62, 0.3, 0.9]), np.array([True, False, True, False, True])
    assert threshold(p_open, targets) == 0.6
    assert threshold(p_open, ~targets) == 0.95


def test_near_duplicates_are_left_out():
    rows = [Row("Write a short poem about the sea.", "open", ""), Row("Name a river.", "closed", "")]
    assert without(rows, ["write a short poem about the sea!", "other"]) == rows[1:]
    assert query_hash("Name a river") == query_hash(" name a RIVER.") != query_hash("Name the river.")


def test_sources_of_one_type_are_named():
    rows = [Row("a", "open", "x"), Row("b", "closed", "x"), Row("c", "open", "y"), Row("d", "open", "y")]
    assert one_sided(rows) == {"y"}


def run_command(monkeypatch, labels: str | Path, output: str | Path) -> None:
    """As `python -m` does."""
    monkeypatch.delitem(sys.modules, "examples.query_types.train_classifier")  # or it would be run twice
    monkeypatch.setattr("sys.argv", ["train_classifier", "--labels", str(labels), "--output", str(output)])
    run_module("examples.query_types.train_classifier", run_name="__main__")


def test_one_command_from_labels_to_weights(tmp_path, monkeypatch):
    file, weights = tmp_path / "mine.csv", tmp_path / "mine.safetensors"
    file.write_text("query,query_type\n" + "".join(f"{row.query},{row.query_type}\n" for row in made_rows()))
    run_command(monkeypatch, file, weights)
    rows = Dataset.from_dict({"prompt": ["write a tale about rain", "spell the word tea"]})
    assert label_query_types(rows, weights)["query_type"][:] == ["open", "closed"]


@pytest.mark.parametrize(
    ("text", "labels", "output", "said"),
    [
        ("query,query_type\na,open\nb,poem\n", "mine.csv", "mine.safetensors", "row 1: expected a query and its type"),
        ("query,query_type\na,open\nb,open\n", "mine.csv", "mine.safetensors", "both types"),
        ("query,query_type\na,open\nb,closed\n", "none.csv", "mine.safetensors", "there is none"),
        ("query,query_type\na,open\nb,closed\n", "mine.txt", "mine.safetensors", "ends in .jsonl"),
        ("[1]", "mine.json", "mine.safetensors", "cannot be read"),
        ("query,query_type\na,open\nb,closed\n", "mine.csv", "mine.bin", "Give mine.safetensors"),
    ],
)
def test_the_command_refuses_in_one_line(text, labels, output, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.csv", "mine.txt", "mine.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as end:
        run_command(monkeypatch, labels, output)
    told = capsys.readouterr().err
    assert end.value.code == 2 and said in " ".join(told.split()) and "Traceback" not in told
    assert not (tmp_path / output).exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("query,query_type\na,open\nb,poem\n", "row 1: expected a query and its type.*got 'b' and 'poem'"),
        ("query,query_type\na,OPEN\n", "row 0.*'OPEN'"),
        ("query,query_type\n,open\n", "row 0"),
        ("question,label\na,open\n", r"columns \['question', 'label'\]: expected `query` and `query_type`"),
        ("", r"columns \[\]"),
    ],
)
def test_labels_that_are_none(tmp_path, text, message):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        own_rows(tmp_path / "mine.csv")


def test_one_type_alone_is_refused():
    with pytest.raises(ValueError, match=r"both types, got 24, all \['open'\]"):
        trained(made_rows()[:24])
