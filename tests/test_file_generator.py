"""Completions from files: which prompts get which, and whose token ids are believed."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from tiny import byte_tokenizer

from trl_ext.generation.file_generator import FileGenerator
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.sample_files import sample_schema
from trl_ext.sequences.tokenizers import tokenizer_fingerprint

ROWS = [
    {"prompt": "a", "completion": "one"},
    {"prompt": "b", "completion": "two", "ended": False, "generator": "people"},
    {"prompt": "a", "completion": "three"},
    {"prompt": "unasked", "completion": "four"},
    {"prompt": "a", "completion": "five"},
]
CHAT = [{"role": "user", "content": "Where?"}]
ANSWER = [{"role": "assistant", "content": "Seoul."}]


@pytest.fixture
def policy():
    return Policy(None, byte_tokenizer())


def jsonl(folder, rows=ROWS, name="expert.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def parquet(folder, rows=ROWS, name="expert.parquet", **options):
    path = folder / name
    names = dict.fromkeys(key for row in rows for key in row)
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path, **options)
    return path


def grown(path, rows, fingerprint, prompts=("a",)):
    """A file as a Grow writes it."""
    defaults = {"row": 0, "sample": 0, "ended": True, "generator": "transformers", "seed": 9}
    path.parent.mkdir(exist_ok=True)
    schema = sample_schema(list(prompts), fingerprint)
    pq.write_table(pa.Table.from_pylist([defaults | row for row in rows], schema=schema), path)
    return path


def ask(path, policy, prompts=("b", "a"), k=8, index=0):
    parts = [Part(index + i, (10 + i,), (prompt,)) for i, prompt in enumerate(prompts)]
    answers = list(FileGenerator(path).generate(parts, Sampling(num_generations=k), policy))
    assert [part for part, _ in answers] == parts
    return [sample for _, samples in answers for sample in samples]


def ids(text):
    return byte_tokenizer()(text)["input_ids"] + [1]


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_each_prompt_gets_its_completions_in_the_files_order(write, tmp_path, policy):
    path = write(tmp_path)
    samples = ask(path, policy)
    assert [(s["row"], s["sample"], s["completion"]) for s in samples] == [
        (10, 0, "two"),
        (11, 0, "one"),
        (11, 1, "three"),
        (11, 2, "five"),
    ]
    assert samples[0] == {
        "row": 10,
        "sample": 0,
        "prompt": "b",
        "completion": "two",
        "prompt_ids": None,
        "completion_ids": None,
        "ended": False,
        "generator": "people",
        "seed": -1,
    }
    assert samples[1]["ended"] is True and samples[1]["generator"] == f"file:{path.name}"


def test_at_most_k(tmp_path, policy):
    assert [s["completion"] for s in ask(jsonl(tmp_path), policy, k=2)] == ["two", "one", "three"]


def test_pieces_of_a_file_count_together(tmp_path, policy, monkeypatch):
    """K is per prompt, not per piece that is read at a time."""
    monkeypatch.setattr("trl_ext.generation.completion_files.LINES", 2)
    assert [s["completion"] for s in ask(jsonl(tmp_path), policy, k=2)] == ["two", "one", "three"]
    assert len(ask(parquet(tmp_path, row_group_size=1), policy, k=2)) == 3


def test_a_prompt_that_is_asked_twice_gets_them_twice(tmp_path, policy):
    assert [s["row"] for s in ask(jsonl(tmp_path), policy, prompts=("b", "b"))] == [10, 11]


def test_a_prompt_without_completions_gets_none(tmp_path, policy):
    rows = [*ROWS, {"prompt": "c", "completion": None}]
    assert [s["prompt"] for s in ask(parquet(tmp_path, rows), policy, prompts=("c", "?", "b"))] == ["b"]


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_messages(write, tmp_path, policy):
    """However they are stored: a column of structs fills what a message lacks with None."""
    named = [{"role": "user", "content": "Where?", "name": "Kim"}]
    rows = [{"prompt": CHAT, "completion": ANSWER}, {"prompt": named, "completion": ANSWER}]
    samples = ask(write(tmp_path, rows), policy, prompts=(CHAT, named))
    assert [(s["prompt"], s["completion"]) for s in samples] == [(CHAT, ANSWER), (named, ANSWER)]
    with_none = [CHAT[0] | {"name": None}]
    assert len(ask(write(tmp_path, rows), policy, prompts=(with_none,))) == 1


def test_messages_with_different_keys_as_datasets_writes_them(tmp_path, policy):
    named = [{"role": "user", "content": "Where?", "name": "Mia"}]
    rows = [{"prompt": prompt, "completion": ANSWER} for prompt in (CHAT, named)]
    Dataset.from_json(str(jsonl(tmp_path, rows)), cache_dir=str(tmp_path / "cache")).to_parquet(tmp_path / "a.parquet")
    assert [s["prompt"] for s in ask(tmp_path / "a.parquet", policy, prompts=(named, CHAT))] == [named, CHAT]


def test_completions_take_the_form_of_their_prompt(tmp_path, policy):
    rows = [{"prompt": CHAT, "completion": "Seoul."}]
    assert ask(jsonl(tmp_path, rows), policy, prompts=(CHAT,))[0]["completion"] == ANSWER
    rows = [{"prompt": "Where?", "completion": ANSWER}]
    with pytest.raises(ValueError, match=r"'Where\?' is text, but its completion is messages"):
        ask(jsonl(tmp_path, rows), policy, prompts=("Where?",))


def test_our_own_file_keeps_ids_generator_and_seed(tmp_path, policy):
    row = {"prompt": "a", "completion": "x", "prompt_ids": ids("a")[:-1], "completion_ids": ids("x")}
    path = grown(tmp_path / "grow-000.parquet", [row], tokenizer_fingerprint(policy.tokenizer))
    [sample] = ask(path, policy)
    assert sample["completion_ids"] == ids("x") and sample["prompt_ids"] == ids("a")[:-1]
    assert (sample["generator"], sample["seed"]) == ("transformers", 9)


def test_parts_of_a_grow(tmp_path, policy):
    """In order; a part that is there unscored and scored counts once; one that is half written not at all."""
    own = tokenizer_fingerprint(policy.tokenizer)
    for name, completion in [("sampled-00000", "?"), ("scored-00000", "1"), ("sampled-00001", "2")]:
        grown(tmp_path / "grow-000" / f"{name}.parquet", [{"prompt": "a", "completion": completion}], own)
    (tmp_path / "grow-000" / "sampled-00002.parquet.7.partial").write_bytes(b"PAR1")
    assert sorted(s["completion"] for s in ask(tmp_path / "grow-000", policy)) == ["1", "2"]


def test_our_own_file_of_another_vocabulary(tmp_path, policy):
    row = {"prompt": "a", "completion": "x", "completion_ids": ids("x")}
    path = grown(tmp_path / "grow-000.parquet", [row], "0" * 32)
    ours = tokenizer_fingerprint(policy.tokenizer)
    message = f"another tokenizer.*made with {'0' * 32}, the policy has {ours}.*Drop the columns"
    with pytest.raises(ValueError, match=message):
        ask(path, policy)
    table = pq.read_table(path).drop_columns(["prompt_ids", "completion_ids"])
    pq.write_table(table, path)  # the remedy
    assert ask(path, policy)[0]["completion_ids"] is None


def test_ids_of_unknown_origin_are_decoded(tmp_path, policy):
    good = {"prompt": "a", "completion": "x", "completion_ids": ids("x"), "prompt_ids": ids("a")[:-1]}
    assert ask(jsonl(tmp_path, [ROWS[0], good]), policy)[1]["completion_ids"] == ids("x")
    with pytest.raises(ValueError, match=r"another tokenizer: the ids of 'x' are 'y' to the policy"):
        ask(jsonl(tmp_path, [ROWS[0], good | {"completion_ids": ids("y")}]), policy)
    with pytest.raises(ValueError, match=r"another tokenizer: the prompt_ids of 'a' are not"):
        ask(jsonl(tmp_path, [ROWS[0], good | {"prompt_ids": [3]}]), policy)


def test_no_prompt_in_common(tmp_path, policy):
    path = jsonl(tmp_path)
    with pytest.raises(ValueError, match=r"expert.jsonl.*none of the prompts asked for, e.g. 'x'; its first is 'a'"):
        ask(path, policy, prompts=("x", "y"))
    assert ask(path, policy, prompts=("x", "y"), index=3) == []  # a resumed run asks for the last parts only


BAD = {
    "missing": (lambda folder: folder / "no.jsonl", "there is no such file"),
    "text": (lambda folder: jsonl(folder, name="a.txt"), "neither a .parquet or .jsonl file nor a folder"),
    "folder": (lambda folder: folder, "nor a folder with .parquet files"),
    "empty jsonl": (lambda folder: jsonl(folder, []), "it has no rows"),
    "empty parquet": (lambda folder: grown(folder / "a.parquet", [], "0"), "it has no rows"),
    "column": (lambda folder: parquet(folder, [{"prompt": "a"}]), "no column 'completion'.*prompt, completion"),
    "key": (lambda folder: jsonl(folder, [{"completion": "a"}]), "no column 'prompt'"),
    "type": (lambda folder: parquet(folder, [{"prompt": 1, "completion": "a"}]), "column 'prompt' is of int64"),
    "mixed": (lambda folder: jsonl(folder, [*ROWS, {"prompt": CHAT, "completion": "a"}]), "cannot be read"),
    "not a row": (lambda folder: jsonl(folder, [[1, 2]]), "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(case, tmp_path):
    write, message = BAD[case]
    with pytest.raises(ValueError, match=rf"FileGenerator\('.*'\): .*{message}"):
        FileGenerator(write(tmp_path))


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_a_damaged_file(write, tmp_path):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{path.name}.*cannot be read .*damaged"):
        FileGenerator(path)


def test_settings_follow_what_the_file_holds(tmp_path):
    settings = FileGenerator(jsonl(tmp_path)).settings()
    assert json.loads(json.dumps(settings)) == settings and settings["file"] == "expert.jsonl"
    (tmp_path / "moved").mkdir()
    assert FileGenerator(jsonl(tmp_path / "moved")).settings() == settings
    assert FileGenerator(jsonl(tmp_path, ROWS[1:])).settings() != settings


def test_sampling_settings_mean_nothing(tmp_path, policy):
    path, part = jsonl(tmp_path), Part(0, (0,), ("a",))
    hot = Sampling(temperature=2.0, seed=3)
    assert list(FileGenerator(path).generate([part], hot, policy)) == list(
        FileGenerator(path).generate([part], replace(hot, temperature=0.5, seed=1), policy)
    )
