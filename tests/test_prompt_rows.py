"""What may stand for prompts and completions, and what is said of everything else; by its shape, in one place for all."""

import json
import re

import datasets
import pytest
from datasets import Dataset
from tiny import byte_tokenizer, tiny_config

from trl_ext import RepetitionPenalty, best_of_n, calibrate_relevance, diagnose, label_query_types, probe_reward
from trl_ext.sequences.prompt_rows import (
    check_completions,
    check_prompts,
    lacks_prompts,
    one_split,
    read_dataset,
    read_prompts,
)
from trl_ext.sequences.text_shapes import fault_of
from trl_ext.sequences.windows import check_windows

PARTS = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2+2?"}]
ASKED = [{"role": "user", "content": "What is 2+2?"}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
SHARED = [{"from": "human", "value": "What is 2+2?"}]


@pytest.mark.parametrize(
    "prompt",
    [
        "What is 2+2?",
        ASKED,
        [{"role": "system", "content": ""}, *ASKED],
        [{"role": "user", "content": PARTS}],
        [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "4"}],
        [{"role": "user", "content": "Hi", "from": "Kim"}],
        [{"role": "user", "content": "Hi", "from": None, "value": None}],  # as a table fills up what is not there
        '[{"a": 1}, {"a": 2}]',  # what is no messages
    ],
)
def test_text_and_messages(prompt):
    assert fault_of(prompt) is None


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        (None, "and there is none. Drop such rows"),
        ("", "and there is nothing in it. Drop such rows"),
        (" \n", "and there is nothing in it but white space"),
        ([], "and there is nothing in it"),
        (4, "and this is of type int"),
        (["What is", "2+2?"], "and this is a list of text"),
        (ASKED[0], "and this is one message, not a list of them"),
        (SHARED, "and these are messages of ShareGPT's"),
        (SHARED[0], "and this is one message of ShareGPT's"),
        (json.dumps(ASKED), "and this is messages, written as text"),
        ([None, *ASKED], "and among its messages is None"),
        ([{"content": "What is 2+2?"}], "and its message 0 has no role"),
        ([*ASKED, {"role": "user"}], "and its message 1 has no content"),
        ([{"role": "assistant", "content": None, "tool_calls": []}], "and its message 0 has no content"),
        ([{"role": "user", "content": 4}], "and the content of its message 0 is of type int"),
        ([{"role": "user", "content": [{"type": "image"}]}], "and its message 0 has a part that is not text"),
        ([*ASKED, {"role": "user", "content": " "}], "and its last message says nothing"),
    ],
)
def test_everything_else_is_named_with_its_row_and_column(prompt, what):
    good = ASKED if isinstance(prompt, list) else "What is 2+2?"
    message = f"Trainer(data=…): the `conversations` of row 1 is {prompt!r}: expected text or messages, "
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        check_prompts([good, prompt], call="Trainer(data=…)", column="conversations")
    assert what in str(raised.value)


@pytest.mark.parametrize(
    "rows", [[SHARED, SHARED], SHARED * 2, [json.dumps(ASKED)] * 2, ASKED * 2, [["What is", "2+2?"]]]
)
def test_the_line_of_advice_makes_prompts_of_them(rows):
    dataset = Dataset.from_dict({"asked": rows})
    with pytest.raises(ValueError, match="`asked` of row 0") as raised:
        read_prompts(dataset, call="Trainer", column="asked")
    names = {"dataset": dataset, "json": json}
    exec(re.search(r"dataset = dataset\.map\(.*", str(raised.value)).group(), names)
    dataset = read_prompts(names["dataset"], call="Trainer", column="asked")
    assert dataset["asked"][0] in (ASKED, "What is\n2+2?")


def test_text_and_messages_in_one_column():
    with pytest.raises(ValueError, match=r"prompt of row 5 is \[.*of one kind in all rows, and that of row 3 is text"):
        check_prompts(["a", ASKED], call="Trainer", rows=[3, 5])


def test_a_data_set_in_order_is_left_alone():
    dataset = Dataset.from_dict({"prompt": [ASKED, [{"role": "user", "content": "Why?"}]]})
    assert read_prompts(dataset, call="Trainer") is dataset


def test_parts_of_text_become_text(tmp_path):
    """As datasets reads such a file; a table of samples has one type of content."""
    rows = [{"prompt": ASKED, "x": 1}, {"prompt": [{"role": "user", "content": PARTS}], "x": 2}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    mixed = Dataset.from_json(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path / "cache"))
    read = read_prompts(mixed, call="Trainer")
    assert read["prompt"][:] == [ASKED, ASKED] and read["x"][:] == [1, 2]


def test_prompts_that_are_answered_are_warned_of():
    answered = [*ASKED, {"role": "assistant", "content": "4"}]
    with pytest.warns(
        UserWarning, match=r"Trainer: 1 of 2 prompts, e.g. that of row 1, end with what the assistant says"
    ):
        read_prompts(Dataset.from_dict({"prompt": [ASKED, answered]}), call="Trainer")


@pytest.mark.parametrize(
    ("prompts", "completion", "what"),
    [
        (["a"], None, "completion of row 0 is None"),
        (["a"], ASKED, "and its prompt is text"),
        ([ASKED], "4", "and its prompt is messages"),
        ([ASKED], SHARED, "these are messages of ShareGPT's"),
    ],
)
def test_completions_have_the_form_of_their_prompts(prompts, completion, what):
    with pytest.raises(ValueError, match=what):
        check_completions(prompts, [completion], call="Trainer")
    check_completions(["a", "b"], ["", None], call="Trainer", may_be_missing=True)


def test_the_column_that_prompts_seem_to_be_in_is_named():
    error = lacks_prompts(["id", "conversations"], call="Trainer")
    assert str(error).endswith("Rename yours: dataset = dataset.rename_column('conversations', 'prompt').")
    assert str(lacks_prompts(["id"], call="Trainer")).endswith("Rename yours.")


def test_all_splits_where_one_is_expected():
    with pytest.raises(
        ValueError, match=r"Trainer: expected one data set, got a dict of \['test'\]. .* dataset\['test'\]"
    ):
        one_split({"test": None}, call="Trainer")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_the_name_of_a_file_is_refused_with_the_call_that_reads_it(name, tmp_path):
    given, path = Dataset.from_dict({"prompt": ["why?"]}), tmp_path / name
    {"rows.jsonl": given.to_json, "rows.csv": given.to_csv, "rows.parquet": given.to_parquet}[name](path)
    for takes in (
        lambda: label_query_types(path),
        lambda: calibrate_relevance("encoder", path),
        lambda: best_of_n("policy", len, path, n=8, max_completion_length=8),
        lambda: read_dataset(path, trainer="PPOTrainer"),
        lambda: probe_reward(RepetitionPenalty(), path),
        lambda: diagnose([{"prompt": "a", "completion": "b"}], reward=RepetitionPenalty(), dataset=path),
    ):
        with pytest.raises(ValueError, match=r"expected a data set, got the name '.*'. Read it: ") as raised:
            takes()
        call = str(raised.value).partition("Read it: ")[2].removesuffix(".")
        assert eval(call, {"datasets": datasets})["prompt"][:] == ["why?"]


def test_a_data_set_of_the_hub_is_refused_with_the_call_that_reads_it():
    with pytest.raises(ValueError, match=r"datasets\.load_dataset\('trl-lib/tldr', split='train'\)\.$"):
        one_split("trl-lib/tldr", call="Trainer")


def check(prompt, template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    check_windows([ASKED, prompt], tokenizer, tiny_config(tokenizer), max_completion_length=5, call="Trainer")


KNOWS_USERS = "{% for m in messages %}{% if m.role == 'user' %}{{ 'u:' + m.content }}{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([{"role": "human", "content": "u"}], "writes nothing of what the prompt of row 1 asks, in a message of role 'human'"),
        ([{"role": "user", "content": None, "tool_calls": [CALL]}], r"prompt of row 1 does not become tokens: the chat template cannot write .*\(TypeError: "),
    ],
)  # fmt: skip
def test_what_is_asked_reaches_the_model(prompt, message):
    with pytest.raises(ValueError, match=message):
        check(prompt, KNOWS_USERS)
    check([{"role": "user", "content": PARTS}], KNOWS_USERS)  # read as their text


@pytest.mark.parametrize("likely", ["Question", "messages", "text", "conversations"])
def test_the_column_that_prompts_seem_to_be_in(likely):
    """Never one that only stands beside them."""
    named = str(lacks_prompts(["system", "context", likely], call="T"))
    assert f"dataset.rename_column({likely!r}, 'prompt')" in named
    assert "rename_column" not in str(lacks_prompts(["system", "history"], call="T"))
