"""Pairs for a labeler, of samples."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ai_feedback_case import labeler
from cli_case import refused, write_rows
from datasets import Dataset
from tiny import byte_tokenizer, tiny_llama

from trl_ext.ai_feedback import sample_pairs
from trl_ext.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*of its probability to the answers")


def samples(**texts: list[str]) -> Dataset:
    rows = [{"prompt": prompt, "completion": text} for prompt, own in texts.items() for text in own]
    return Dataset.from_list(rows)


def as_sets(pairs: Dataset) -> list[tuple]:
    return [(row["prompt"], frozenset((row["completion_1"], row["completion_2"]))) for row in pairs]


def test_all_pairs_by_hand():
    """Those of one prompt may stand anywhere; equal and empty completions make no pair."""
    rows = [("p", "a"), ("q", "x"), ("p", "b"), ("p", "a"), ("q", "y"), ("p", " "), ("p", "c")]
    given = Dataset.from_list([{"prompt": prompt, "completion": text, "score": 0.0} for prompt, text in rows])
    found = sample_pairs(given, per_prompt=9)
    assert found.column_names == ["prompt", "completion_1", "completion_2"]
    wanted = [("p", "ab"), ("p", "ac"), ("p", "bc"), ("q", "xy")]
    assert sorted(as_sets(found), key=str) == sorted([(p, frozenset(texts)) for p, texts in wanted], key=str)


def test_the_draw_is_each_prompts_own():
    texts = [f"{i}" for i in range(8)]
    alone, beside = sample_pairs(samples(q=texts)), sample_pairs(samples(p=["a", "b"], q=texts, r=["x", "y"]))
    assert beside.to_list()[1:2] == alone.to_list() and len(beside) == 3
    assert len({frozenset(as_sets(sample_pairs(samples(q=texts), seed=seed))) for seed in range(9)}) > 3
    first = [sample_pairs(samples(q=["a", "b"]), seed=seed)[0]["completion_1"] for seed in range(20)]
    assert {*first} == {"a", "b"}  # no place for the sample that was first


def test_messages_stay_messages():
    prompt = [{"role": "user", "content": "Hi?"}]
    rows = [{"prompt": prompt, "completion": [{"role": "assistant", "content": text}]} for text in "ab"]
    pairs = sample_pairs(Dataset.from_list(rows))
    assert labeler(chat=True).label(pairs)[0]["prompt"] == prompt


def test_prompts_without_a_pair():
    with pytest.warns(UserWarning, match="1 of 2 prompts have no two completions that differ"):
        assert len(sample_pairs(samples(p=["a", "a"], q=["a", "b"]))) == 1
    with pytest.raises(ValueError, match="none of 1 prompts has two completions that differ"):
        sample_pairs(samples(p=["a", "a"]))


def test_a_list_of_rows_is_drawn_from_alike():
    rows = samples(p=["a", "b", "c"], q=["d", "e"])
    assert sample_pairs([row | {"row": 0} for row in rows.to_list()]).to_list() == sample_pairs(rows).to_list()


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ([{"prompt": "p"}], {}, "expected a Dataset with `prompt` and `completion`.*got list"),
        ([{"prompt": "p", "completion": each} for each in ("a", 3)], {}, "sample_pairs: its rows are not of one kind"),
        (Dataset.from_list([{"prompt": "p"}]), {}, r"got \['prompt'\]"),
        (samples(p=["a", "b"]), {"per_prompt": 0}, r"per_prompt=0"),
        (samples(p=["a", "b"]), {"seed": -1}, r"seed=-1"),
    ],
)
def test_what_are_no_samples(given, options, said):
    with pytest.raises(ValueError, match=said):
        sample_pairs(given, **options)


def test_from_generate_to_labels_from_a_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_llama(byte_tokenizer(), max_position_embeddings=2048).save_pretrained("model")
    byte_tokenizer().save_pretrained("model")
    write_rows(Path("prompts.jsonl"), [{"prompt": "p"}, {"prompt": "q"}])
    sampled = ["--num-generations", "3", "--max-completion-length", "4", "--output", "samples.parquet"]
    main(["generate", "--prompts", "prompts.jsonl", "--model", "model", *sampled])
    label = ["label", "--preferences", "samples.parquet", "--model", "model", "--output", "labelled.parquet"]
    assert "Add --pairs_per_prompt 1" in refused(capsys, *label)
    main([*label, "--pairs_per_prompt", "2"])
    rows = pq.read_table("labelled.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == ["p", "p", "q", "q"] and all(row["chosen"] for row in rows)
    main([*label, "--pairs_per_prompt", "2"])
    assert "0 asked" in capsys.readouterr().out
    write_rows(Path("pairs.jsonl"), [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    others = ["label", "--preferences", "pairs.jsonl", "--model", "model", "--output", "o.parquet"]
    assert "expected samples in --preferences" in refused(capsys, *others, "--pairs_per_prompt", "1")
    typed = ["label", "--query_types", "prompts.jsonl", "--output", "o.parquet", "--pairs_per_prompt", "1"]
    assert "--pairs_per_prompt: it does nothing beside --query_types" in refused(capsys, *typed)
