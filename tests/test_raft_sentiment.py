"""The benchmark `sentiment.py`: end to end on the smallest model and reviews made here, and its parts by hand."""

import json
from pathlib import Path

import pytest
from tiny import byte_tokenizer, tiny_llama

from examples.benchmarks.self_training import sentiment

TINY = {"--k": 3, "--stages": 1, "--prompts": 4, "--tokens": 8, "--reward-epochs": 1, "--learning-rate": 1e-3}
TINY |= {"--start-epochs": 15, "--start-learning-rate": 2e-2}  # it must learn to end
ARMS = ["model as it came", "start", "SFT on positive", "random", "RAFT"]


def json_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def command(tmp_path):
    """All arguments but the seeds."""
    tokenizer = byte_tokenizer()
    for part in (tokenizer, tiny_llama(tokenizer)):
        part.save_pretrained(tmp_path / "model")
    reviews = [
        {"id": str(i), "positive": f"Film {i} is very ok. I saw it.", "negative": f"Film {i} is very bad. I saw it."}
        for i in range(40)
    ]
    snippets = [{"text": "ok ok", "label": "pos"}, {"text": "no no", "label": "neg"}, {"text": "ok", "label": "pos"}]
    given = TINY | {
        "--model": tmp_path / "model",
        "--pairs": json_lines(tmp_path / "pairs.jsonl", reviews),
        "--snippets": json_lines(tmp_path / "snippets.jsonl", snippets),
        "--output-dir": tmp_path / "out",
    }
    return [str(word) for pair in given.items() for word in pair]


def test_all_arms_are_in_the_table_and_run_once(command, tmp_path, monkeypatch):
    sentiment.main([*command, "--seeds", "0"])
    table = (tmp_path / "out" / "table.txt").read_text(encoding="utf-8")
    written = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    result = written["runs"]["0"]
    assert all(arm in table for arm in ARMS) and list(result["arms"]) == ARMS
    assert sum(result["pairs"].values()) == 40
    assert result["arms"]["start"]["gain by the judge, deviations"] == 0
    perplexity = "perplexity of people's positive text"
    of = {arm: result["arms"][arm][perplexity] for arm in ARMS}
    assert len(set(of.values())) == 5  # all five are other models
    assert of["SFT on positive"] < of["start"] < of["model as it came"]
    assert list(result["samples"][0]) == ["prompt", *ARMS]

    def never(*_, **__):
        raise AssertionError("it trains")

    monkeypatch.setattr(sentiment, "prepare", never)
    sentiment.main([*command, "--seeds", "0"])
    assert (tmp_path / "out" / "table.txt").read_text(encoding="utf-8") == table
    with pytest.raises(ValueError, match=r"--output-dir .* holds runs with k = 3, not 4. Choose another folder"):
        sentiment.main([*command, "--seeds", "0", "--k", "4"])
    with pytest.raises(AssertionError, match="it trains"):
        sentiment.main([*command, "--seeds", "0", "1"])


def test_changed_sentences_become_pairs():
    positive = "I saw it. This film is so good! The end is fine.<br />Go and see it now. Yes."
    negative = "I saw it. This film is so bad! The end is fine. Do not go and see it."  # the last two became one
    assert sentiment.changed_sentences(positive, negative) == [("This film is so good!", "This film is so bad!")]
    as_pair = sentiment.as_pair
    pair = {"prompt": "This film is so", "chosen": " good!", "rejected": " bad!"}
    assert as_pair("This film is so good!", "This film is so bad!") == pair
    assert as_pair("It is good.", "It is bad.") is None  # two words in common
    assert as_pair("It is so good.", "It is so") is None  # nothing follows in one


def test_reviews_are_divided():
    pairs = [
        {"review": str(i // 2), "prompt": f"p{i % 300}", "chosen": f" a{i}", "rejected": f" b{i}"} for i in range(400)
    ]
    parts = sentiment.divided(pairs, 0)
    reviews = {name: {pair["review"] for pair in part} for name, part in parts.items()}
    assert not reviews["arms"] & reviews["judge"] and not reviews["held-out"] & (reviews["arms"] | reviews["judge"])
    elsewhere = {pair["prompt"] for name in ("arms", "judge") for pair in parts[name]}
    assert elsewhere.isdisjoint(pair["prompt"] for pair in parts["held-out"])
    assert {pair["review"] for pair in sentiment.divided(pairs, 1)["arms"]} != reviews["arms"]
    with pytest.raises(ValueError, match=r"--pairs: none of 1 sentence pairs is .* with seed 0. Give more"):
        sentiment.divided(pairs[:1], 0)


def test_bad_rows_are_named(tmp_path):
    path = json_lines(tmp_path / "pairs.jsonl", [{"id": "a", "positive": "x", "negative": None}])
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 1: expected text in the field 'negative', got None"):
        sentiment.rows_of(path, ["id", "positive", "negative"])
    snippets = json_lines(tmp_path / "snippets.jsonl", [{"text": "x", "label": "good"}])
    with pytest.raises(ValueError, match=r"snippets.jsonl: expected the label 'pos' or 'neg', got 'good'"):
        sentiment.snippet_pairs(snippets, 0)


def test_gains_by_hand():
    gains = sentiment.gains({"judge": [3.0, 5.0]}, {"judge": [0.0, 4.0]})  # (4 − 2) / 2
    assert gains == {"gain by the judge, deviations": 1.0}
