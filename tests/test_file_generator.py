"""Completions from files: which prompts get which, and whose token ids are believed."""

import json
import warnings
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from tiny import byte_tokenizer, tiny_llama

from trl_ext.generation.file_generator import FileGenerator
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.generation.sample_files import sample_schema
from trl_ext.sequences.samples import as_completion
from trl_ext.sequences.texts import text_of
from trl_ext.sequences.token_ids import prompt_and_completion_ids
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
    schema = sample_schema(pa.infer_type(list(prompts)), fingerprint)
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


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_parts_of_text_are_text(write, tmp_path, policy):
    """On both sides, so that a prompt is found however its messages are written."""

    def in_parts(messages):
        return [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages]

    path = write(tmp_path, [{"prompt": in_parts(CHAT), "completion": in_parts(ANSWER)}])
    for prompt in (CHAT, in_parts(CHAT)):
        assert [sample["completion"] for sample in ask(path, policy, prompts=(prompt,))] == [ANSWER]
    mixed = jsonl(tmp_path, [{"prompt": prompt, "completion": "Seoul."} for prompt in (CHAT, in_parts(CHAT))])
    assert len(ask(mixed, policy, prompts=(CHAT,))) == 2


@pytest.mark.parametrize("write", [jsonl, parquet])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": [{"from": "human", "value": "Where?"}]}, "column 'prompt' is of .* messages of ShareGPT's"),
        ({"completion": ANSWER[0]}, "column 'completion' is of struct.* this is one message, not a list of them"),
        ({"completion": CHAT}, r"the completion of prompt .* is \[{'role': 'user'.* none of these is the assistant's"),
        ({"completion": [{"content": "Seoul."}]}, "its message 0 has no role"),
        ({"completion": 4}, "column 'completion' is of int64, e.g. 4"),
    ],
)
def test_completions_of_another_shape(wrong, message, write, tmp_path, policy):
    with pytest.raises(ValueError, match=rf"FileGenerator\('.*'\): .*{message}"):
        ask(write(tmp_path, [{"prompt": CHAT, "completion": ANSWER} | wrong]), policy, prompts=(CHAT,))


def test_a_row_of_another_shape_than_the_first(tmp_path, policy, monkeypatch):
    rows = [{"prompt": CHAT, "completion": ANSWER}, {"prompt": CHAT, "completion": [{"role": "assistant"}]}]
    with pytest.raises(ValueError, match=r"the completion of prompt .* its message 0 has no content"):
        ask(jsonl(tmp_path, rows), policy, prompts=(CHAT,))
    monkeypatch.setattr("trl_ext.generation.completion_files.LINES", 2)
    text = [{"prompt": "a", "completion": "b"}] * 3
    with pytest.raises(
        ValueError, match=r"'completion' holds values of different kinds \(str in row 2, list in row 3\)"
    ):
        ask(jsonl(tmp_path, [*text, {"prompt": "a", "completion": ANSWER}]), policy, prompts=("a",))


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


def four_each(prompts, path, fingerprint):
    """What `generate` writes with K = 4: every completion is another."""
    rows = [
        {"row": row, "sample": sample, "prompt": prompt, "completion": f"{row}.{sample}"}
        | {"prompt_ids": ids(prompt)[:-1], "completion_ids": ids(f"{row}.{sample}")}
        for row, prompt in enumerate(prompts)
        for sample in range(4)
    ]
    return grown(path, rows, fingerprint)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "pandas"])
def test_our_own_file_comes_back_row_for_row(kind, tmp_path, policy):
    """Also where prompts repeat, only some parts are asked for, and the file was converted since."""
    prompts = ["a", "b", "a", "a"]
    path = four_each(prompts, tmp_path / "s.parquet", tokenizer_fingerprint(policy.tokenizer))
    if kind == "jsonl":
        path = jsonl(tmp_path, pq.read_table(path).to_pylist())
    elif kind == "pandas":  # which keeps no metadata of ours
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    parts = [Part(i, (row,), (prompts[row],)) for i, row in enumerate([0, 1, 2, 3])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left out, so nothing is said
        answers = list(FileGenerator(path).generate(parts, Sampling(num_generations=4), policy))
        last = list(FileGenerator(path).generate(parts[3:], Sampling(num_generations=4), policy))
    samples = [sample for _, samples in answers for sample in samples]
    assert [s["completion"] for s in samples] == [f"{row}.{sample}" for row in range(4) for sample in range(4)]
    assert [s["sample"] for s in samples] == [0, 1, 2, 3] * 4
    assert last == answers[3:]


def test_prompts_at_other_rows_than_in_our_own_file(tmp_path, policy):
    path = four_each(["a", "b", "a"], tmp_path / "s.parquet", tokenizer_fingerprint(policy.tokenizer))
    with pytest.warns(UserWarning, match=r"1 prompts stand at other rows .* at several, e.g. 'a' at 2"):
        samples = ask(path, policy, prompts=("b", "a"))  # at 10 and 11
    assert [s["completion"][0] for s in samples] == ["1"] * 4 + ["0"] * 4 + ["2"] * 4


@pytest.mark.parametrize("columns", [{"row": 11}, {"row": "x", "sample": "y"}, {"row": 10.5, "sample": 0}])
def test_a_file_by_others_may_have_a_column_of_our_names(columns, tmp_path, policy):
    rows = [{"prompt": "a", "completion": text} | columns for text in ("one", "two")]
    for write in (jsonl, parquet):
        assert [s["completion"] for s in ask(write(tmp_path, rows), policy, prompts=("a",))] == ["one", "two"]


def test_our_own_file_with_rows_of_others_behind_it(tmp_path, policy):
    rows = [{"prompt": "a", "completion": "x", "row": 10, "sample": 0}, {"prompt": "b", "completion": "y"}]
    assert [s["completion"] for s in ask(parquet(tmp_path, rows), policy, prompts=("a", "b"))] == ["x", "y"]


def test_a_grow_with_nothing_but_the_data_sets_own(tmp_path, policy):
    path = grown(tmp_path / "s.parquet", [{"prompt": "a", "completion": "x", "sample": -1}], "0")
    with pytest.raises(ValueError, match=r"none of the prompts asked for, e.g. 'b'; its first is None"):
        ask(path, policy)


def test_prompts_that_repeat_are_counted(tmp_path, policy):
    with pytest.warns(UserWarning, match=r"3 of the 4 prompts asked for repeat 1 prompts, e.g. 'a' 3 times"):
        samples = ask(jsonl(tmp_path), policy, prompts=("a", "b", "a", "a"))
    assert [s["completion"] for s in samples] == ["one", "three", "five", "two", *["one", "three", "five"] * 2]


def test_what_is_not_given_is_counted(tmp_path, policy):
    with pytest.warns(UserWarning, match=r"1 prompts have more than num_generations=2 completions, e.g. 'a' 3"):
        ask(jsonl(tmp_path), policy, k=2)
    with pytest.warns(UserWarning, match=r"no completion for 1 of the 2 prompts, e.g. '\?'"):
        ask(jsonl(tmp_path), policy, prompts=("b", "?"))


def refused_before_the_first_part(rows, policy, folder, message, *, write=jsonl):
    parts = [Part(i, (i,), (prompt,)) for i, prompt in enumerate("ab")]
    with pytest.raises(ValueError, match=rf"FileGenerator\('.*'\): .*{message}"):
        next(FileGenerator(write(folder, rows)).generate(parts, Sampling(), policy))


GOOD = {"prompt": "a", "completion": "x", "completion_ids": ids("x"), "prompt_ids": ids("a")[:-1]}
LAST = {"prompt": "b", "completion": "y", "completion_ids": ids("y"), "prompt_ids": ids("b")[:-1]}


@pytest.mark.parametrize("write", [jsonl, parquet])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"completion_ids": ids("z")}, "another tokenizer: the ids of 'y' are 'z' to the policy"),
        ({"prompt_ids": [3]}, "another tokenizer: the prompt_ids of 'b' are not what the policy reads"),
        ({"completion_ids": [3, 259]}, "the completion_ids of prompt 'b' have the id 259, and .* vocabulary has 259"),
        ({"prompt_ids": [-1]}, "the prompt_ids of prompt 'b' have the id -1"),
        ({"completion_ids": [2**40]}, "have the id 1099511627776"),
        ({"prompt_ids": None}, "prompt 'b' has completion_ids without prompt_ids.*Give both"),
        ({"completion_ids": []}, r"`completion_ids` of prompt 'b' are \[\], expected a list of whole numbers"),
        ({"prompt_ids": []}, r"`prompt_ids` of prompt 'b' are \[\]"),
        ({"completion_ids": [3, None]}, r"`completion_ids` of prompt 'b' are \[3, None\]"),
        ({"completion": "why"}, "the ids of 'why' are 'y' to the policy"),
    ],
)
def test_every_row_is_checked_before_the_first_part(wrong, message, write, tmp_path, policy):
    refused_before_the_first_part([GOOD, GOOD, LAST | wrong], policy, tmp_path, message, write=write)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ended": "false"}, "`ended` of prompt 'b' is 'false', expected true or false"),
        ({"ended": 0}, "`ended` of prompt 'b' is 0"),
        ({"generator": 3}, "`generator` of prompt 'b' is 3, expected text"),
        ({"seed": "7"}, "`seed` of prompt 'b' is '7', expected a whole number"),
        ({"completion_ids": "3 4"}, "`completion_ids` of prompt 'b' are '3 4', expected a list"),
        ({"completion_ids": [3.5]}, r"`completion_ids` of prompt 'b' are \[3.5\]"),
    ],
)
def test_values_of_a_wrong_type(wrong, message, tmp_path, policy):
    rows = [{"prompt": "a", "completion": "x"}, {"prompt": "b", "completion": "y"} | wrong]
    refused_before_the_first_part(rows, policy, tmp_path, message)


def test_a_text_that_was_changed_in_our_own_file(tmp_path, policy):
    row = {"prompt": "a", "completion": "X", "prompt_ids": ids("a")[:-1], "completion_ids": ids("x")}
    path = grown(tmp_path / "s.parquet", [row], tokenizer_fingerprint(policy.tokenizer))
    with pytest.raises(ValueError, match="the ids of 'X' are 'x' to the policy"):
        ask(path, policy)


def test_ids_of_the_models_own_vocabulary(tmp_path, policy):
    """Embeddings may have more rows than the tokenizer has words, and a model samples them."""
    row = GOOD | {"completion_ids": [*ids("x")[:-1], 263, 1]}
    wide = Policy(tiny_llama(policy.tokenizer, vocab_size=264), policy.tokenizer)
    assert ask(jsonl(tmp_path, [row]), wide)[0]["completion_ids"] == row["completion_ids"]
    narrow = Policy(tiny_llama(policy.tokenizer, vocab_size=263), policy.tokenizer)
    refused_before_the_first_part([row], narrow, tmp_path, "have the id 263, and .* vocabulary has 263")


def test_ids_that_were_read_from_the_text(tmp_path, policy):
    """A text with a special token in it decodes to another, and is nevertheless its ids' text."""
    text = "x<eos>y"
    prompt, completion = prompt_and_completion_ids("a", text, policy.tokenizer)
    row = {"prompt": "a", "completion": text, "prompt_ids": prompt, "completion_ids": completion}
    assert ask(jsonl(tmp_path, [row]), policy)[0]["completion_ids"] == completion


@pytest.mark.parametrize("has_ids", [True, False])
@pytest.mark.parametrize("prompt", ["a", CHAT])
def test_completions_that_are_too_long_are_left_out_aloud(prompt, has_ids, tmp_path, policy):
    rows = []
    for text in ("1234567", "12345678", "123456"):  # and an end token each
        tokens = prompt_and_completion_ids(prompt, as_completion(prompt, text), policy.tokenizer)
        given = dict(zip(("prompt_ids", "completion_ids"), tokens, strict=True)) if has_ids else {}
        rows.append({"prompt": prompt, "completion": text} | given)
    part = Part(0, (0,), (prompt,))
    with pytest.warns(UserWarning, match="1 completions are longer than max_completion_length=8 and are left out"):
        [(_, samples)] = FileGenerator(jsonl(tmp_path, rows)).generate(
            [part], Sampling(max_completion_length=8), policy
        )
    assert [text_of(s["completion"]) for s in samples] == ["1234567", "123456"]
    assert [s["sample"] for s in samples] == [0, 1]


def test_text_needs_no_chat_template_where_nothing_is_trained(tmp_path, policy):
    policy.tokenizer.chat_template = None
    rows = [{"prompt": CHAT, "completion": "Seoul."}]
    assert ask(jsonl(tmp_path, rows), policy, prompts=(CHAT,))[0]["completion"] == ANSWER
