"""What the benchmark with a real model makes of its seeds, and what it shows."""

import json
from collections import Counter

from examples.benchmarks.ai_feedback.self_instruct_real import page, seeds_of
from trl_ext.self_instruct import Instance, MadeTasks, Task


def test_seeds_of_queries(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"query": "Add.\n1 + 1", "reference": "2", "is_classification": False},
        {"query": "Sing.", "reference": None, "is_classification": False},
        {"query": "Is it?", "reference": "yes"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert seeds_of(path) == [{"instruction": "Add.", "input": "1 + 1", "output": "2", "is_classification": False}]
    own = [{"instruction": "Sing.", "output": "La."}]
    path.write_text(json.dumps(own[0]) + "\n")
    assert seeds_of(path) == own


def test_the_page_shows_what_comes_first():
    tasks = tuple(Task(f"Do {i}.", False, (Instance("a|b", f"line\n{i}"),)) for i in range(30))
    left_out = {"instructions": Counter({"too short": 30}), "kinds": Counter(), "instances": Counter()}
    text = page(MadeTasks(tasks, 30, left_out, {}), 12.0)
    assert "30 of 60 listed instructions (50%)" in text
    assert "| instructions | too short | 30 |" in text
    assert r"| Do 0. | a\|b | line\n0 |" in text
    assert "Do 19." in text and "Do 20." not in text and "The first 20 instances:" in text
    assert "All instances, 3:" in page(MadeTasks(tasks[:3], 30, left_out, {}), 12.0)
