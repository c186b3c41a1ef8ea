"""examples/benchmarks/r3/relevance.py and relevance_speed.py: who tells relevant from irrelevant, and how fast."""

import json

import pytest
import torch
from encoders import saved_bert

from examples.benchmarks.r3 import relevance, relevance_speed
from examples.benchmarks.r3.rerank_columns import identification

ROWS = [
    {"query": "why is the sky blue", "relevant": "the sky scatters blue light", "irrelevant_easy": "cats sleep"},
    {
        "query": "who sleeps",
        "relevant": "cats, who sleep",
        "irrelevant_easy": "a sky",
        "irrelevant_hard": "dogs who bark a lot",
    },
]
SHORT = {"short": {"relevant": "cats", "irrelevant_hard": "dogs"}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(map(json.dumps, [ROWS[0], ROWS[1] | SHORT])))
    return path


def test_sets_have_the_rows_that_are_whole(file):
    found = {name: columns for name, *columns in relevance.sets(file, rows=10)}
    assert {name: len(columns[0]) for name, columns in found.items()} == {
        "few, easy": 2,
        "few, hard": 1,
        "few, short, easy": 1,
        "few, short, hard": 1,
    }
    assert found["few, short, hard"] == [["who sleeps"], ["cats"], ["dogs"]]


def test_accuracy_by_hand():
    def first_letter(queries, answers):
        return [float(answer.startswith(query)) for query, answer in zip(queries, answers, strict=True)]

    share, low, high = relevance.accuracy(first_letter, ["a", "b", "c"], ["ab", "ba", "x"], ["b", "by", "y"])
    assert share == pytest.approx((1 + 0.5 + 0.5) / 3) and low < share < high
    assert relevance.interval(0.5, 96)[1:] == pytest.approx((0.402, 0.598), abs=1e-3)


def test_the_same_rows_are_compared():
    """Right in two rows more of four: 0.5 ± s / √n, s = √(1/3), though the shares 1 and ½ have intervals that overlap."""
    rows = {
        "first": {"few": [0.0, 0.0, 1.0, 1.0]},
        "second": {"few": [1.0] * 4},
        "third": {"few": [0.0, 0.0, 1.0, 1.0]},
    }
    lines = relevance.against_the_first(rows).splitlines()
    assert lines[0] == "| less first | few |" and lines[2] == "| second | +0.500 ± 0.289 |"
    assert lines[3] == "| third | the same |"
    certain = relevance.against_the_first({"first": {"few": [0.0] * 9 + [1.0]}, "second": {"few": [1.0] * 10}})
    assert certain.splitlines()[2] == "| second | **+0.900 ± 0.100** |"


def test_all_kinds_are_compared(file, tmp_path, capsys):
    rewards = tmp_path / "rewards.py"
    rewards.write_text("def shorter(completions, **_):\n    return [-float(len(text)) for text in completions]\n")
    arguments = ["--data", str(file), "--encoder", saved_bert(tmp_path / "bert"), "--reward", f"{rewards}:shorter"]
    relevance.main([*arguments, "--output", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found) == ["bert, dot", "bert, cosine", "rewards.py:shorter (reward)", "BM25", "length"]
    assert found["length"]["few, easy"][0] == 1.0 and found["rewards.py:shorter (reward)"]["few, easy"][0] == 0.0
    assert found["BM25"]["few, easy"][0] == 1.0 and found["BM25"]["few, short, hard"][0] == 0.5  # no word in common
    printed = capsys.readouterr().out
    assert "| BM25 | 100 " in printed and "| less bert, dot |" in printed


def test_an_answer_finds_its_own_prompt_by_its_words():
    """The second has no word, and a share of each prompt; the third is nobody's, though all share `is`."""
    rows = [
        {"query": "Where is the cat?", "completions": ["A cat is indoors.", "", "It is."]},
        {"query": "What is bread made of?", "completions": ["Bread: flour.", "?!", "Of water."]},
        {"query": "Who is Mia?", "completions": ["mia!", "dog", "Bread is Mia."]},
    ]
    found = identification(rows)
    assert found[:, 0].tolist() == [1, 1, 1] and found[0, 1] == found[2, 1] == pytest.approx(1 / 3)


def test_word_overlap_counts_rare_words_more():
    rare, *common = relevance.bm25(["the axolotl"] * 4, ["axolotl here", "the here", "the there", "the end"])
    assert rare > max(common) and min(common) >= 0


def test_the_ways_say_the_same_and_ours_reads_least(tmp_path):
    path = saved_bert(tmp_path)
    data = [
        {"prompts": ["why?", "why?", "a sky"], "completions": [f"{i} because", f"{i} so", f"{i}"]} for i in range(2)
    ]
    seconds = relevance_speed.compare(path, data)
    assert list(seconds) == ["the authors'", "a pair at a time", "here"] and all(each > 0 for each in seconds.values())


def test_no_completion_comes_twice(tmp_path):
    rows = [{"query": f"q{i}", "relevant": f"a{i}"} for i in range(relevance_speed.PROMPTS)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    first, second = relevance_speed.rounds(file, 2)
    assert first["prompts"] == second["prompts"] and len(set(first["prompts"])) == relevance_speed.PROMPTS
    said = first["completions"] + second["completions"]
    assert len(set(said)) == len(said) == 2 * relevance_speed.PROMPTS * relevance_speed.SAMPLES


def test_the_share_is_of_what_the_reward_takes():
    reward = relevance_speed.timed(lambda **columns: [float(torch.randn(400, 400).svd()[1][0])])
    reward(prompts=["x"])
    assert reward.seconds > 0 and reward.__name__ == "r3"
