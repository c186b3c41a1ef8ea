"""Preference files as people have them, read as what they say; what says nothing plain is named."""

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from test_preference_data import assistant, user
from tiny import byte_tokenizer, tiny_reward_model
from trl import RewardConfig

from trl_ext import ImitationRewardConfig, ImitationRewardTrainer
from trl_ext.generation.completion_files import without_nones
from trl_ext.reward_modeling.preference_data import check_pairs, columns_of
from trl_ext.sequences.preference_rows import preference_row, repeats_prompt

PROMPT = [user("Why?")]
READ = {"prompt": PROMPT, "chosen": [assistant("not now")], "rejected": [assistant("nothing")]}
WHOLE = {side: PROMPT + READ[side] for side in ("chosen", "rejected")}
SYSTEM = {"role": "system", "content": "Be brief."}


def shared(*turns):
    return [{"from": who, "value": text} for who, text in turns]


@pytest.mark.parametrize(
    "row",
    [
        READ,
        {"prompt": "Why?", **WHOLE},  # UltraFeedback
        {"prompt": " Why?\n", "chosen": [assistant("not now")], "rejected": [assistant("nothing")]},
        {"prompt": PROMPT, **WHOLE},
        {"prompt": None, **WHOLE},
        {"prompt": "Why?", **WHOLE, "chosen": [user("Why?") | {"name": None}, assistant("not now")]},
        {"prompt": [user("Why?") | {"name": None}], **WHOLE},
        {"prompt": "Why?", "chosen": assistant("not now"), "rejected": assistant("nothing")},
        {
            "conversations": shared(("human", "Why?")),  # LLaMA-Factory
            "chosen": shared(("gpt", "not now"))[0],
            "rejected": shared(("gpt", "nothing"))[0],
        },
        {
            "prompt": "Why?",
            "chosen": shared(("human", "Why?"), ("gpt", "not now")),
            "rejected": shared(("human", "Why?"), ("gpt", "nothing")),
        },
        {"prompt": PROMPT, "chosen": "not now", "rejected": "nothing"},
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}],
            "chosen": [assistant("not now")],
            "rejected": [assistant("nothing")],
        },
    ],
)
def test_shapes_that_say_the_same(row):
    read = preference_row(row)
    said = [message["content"].strip() for side in ("prompt", "chosen", "rejected") for message in read[side]]
    assert said == ["Why?", "not now", "nothing"]
    assert [message["role"] for message in read["prompt"]] == ["user"]
    table = check_pairs(Dataset.from_list([row] * 2), list(row), "train")  # which fills up what a message lacks
    assert {side: list(map(without_nones, said)) for side, said in table[1].items()} == {
        side: list(map(without_nones, said)) for side, said in read.items()
    }


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "Why? not now", "rejected": "Why? nothing"},
        {"prompt": "", "chosen": "not now", "rejected": "nothing"},
        {"prompt": "no", "chosen": "not now", "rejected": "nothing"},  # which only begin alike
        WHOLE,
        {"prompt": [SYSTEM], **WHOLE},  # which stands before them
        {"chosen": [SYSTEM, *WHOLE["chosen"]], "rejected": [SYSTEM, *WHOLE["rejected"]]},
    ],
)
def test_rows_of_trls_are_left_alone(row):
    other = {"prompt": "Why?"} if isinstance(row.get("prompt"), str) else {}
    rows = Dataset.from_list([row, row | other])
    assert preference_row(row) == row
    assert check_pairs(rows, list(row), "train")[:] == rows[:]


@pytest.mark.parametrize("prompt", ["Why?", PROMPT, None])
def test_what_two_conversations_share_is_the_prompt(prompt):
    turns = [*PROMPT, assistant("So."), user("Really?")]
    row = {"prompt": prompt} | {side: [*turns, *READ[side]] for side in ("chosen", "rejected")}
    assert preference_row(row) == READ | {"prompt": turns}


def test_a_conversation_without_the_prompts_system_message():
    assert preference_row({"prompt": [SYSTEM, *PROMPT], **WHOLE}) == READ | {"prompt": [SYSTEM, *PROMPT]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "'prompt' is None: expected text or messages"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "'prompt' is 3: expected .* of type int"),
        ({"prompt": "a", "chosen": 1, "rejected": 0}, "'chosen' is 1: expected .* of type int"),
        ({"chosen": ["a", "b"], "rejected": ["c"]}, r"'chosen' is \['a', 'b'\]: expected .* list of text"),
        (
            {"chosen": "a", "rejected": [assistant("b")]},
            "one of 'chosen' and 'rejected' is text and the other messages",
        ),
        ({"prompt": "", "chosen": [assistant("a")], "rejected": [assistant("b")]}, "'prompt' is '': .* nothing in it"),
        ({"prompt": "Where?", **WHOLE}, "'prompt' is 'Where\\?': .* not among the messages that the two whole"),
        ({"chosen": [{"content": "a"}], "rejected": [{"content": "b"}]}, "its message 0 has no role"),
    ],
)
def test_what_says_nothing_plain_is_named(row, message):
    with pytest.raises(ValueError, match=message):
        preference_row(row)
    with pytest.raises(ValueError, match=f"row 0 of the train dataset: .*{message}"):
        next(iter(check_pairs(IterableDataset.from_generator(lambda: iter([row])), list(row), "train")))


def test_text_that_repeats_its_prompt_in_each_row():
    rows = [{"prompt": f"{n} + 2 =", "chosen": f"{n} + 2 = {n + 2}", "rejected": f"{n} + 2 = {n}"} for n in range(3)]
    with pytest.warns(UserWarning, match="in each row of the train dataset both completions begin with the prompt"):
        read = check_pairs(Dataset.from_list(rows), list(rows[0]), "train")
    assert read[1] == {"prompt": "1 + 2 =", "chosen": " 3", "rejected": " 1"}
    with pytest.warns(UserWarning, match="in each of the first 32 rows of the train dataset both completions begin"):
        stream = check_pairs(Dataset.from_list(rows).to_iterable_dataset(), list(rows[0]), "train")
    assert list(stream) == list(read)
    assert not repeats_prompt({"prompt": "a", "chosen": "a", "rejected": "ab"})  # which would say nothing
    rows[1] |= {"rejected": "none"}  # then it may be what they say
    assert check_pairs(Dataset.from_list(rows), list(rows[0]), "train")["chosen"][:] == [row["chosen"] for row in rows]


def test_a_stream_is_read_as_it_comes():
    rows = Dataset.from_list([{"prompt": "Why?", **WHOLE}] * 2).to_iterable_dataset()
    assert list(check_pairs(rows, ["prompt", "chosen", "rejected"], "train")) == [READ] * 2


def trained(folder, rows, config=ImitationRewardConfig):
    args = config(str(folder), bf16=False, report_to="none", use_cpu=True, max_length=200)
    model, tokenizer = tiny_reward_model(byte_tokenizer(), tie_word_embeddings=True), byte_tokenizer()
    return ImitationRewardTrainer(
        model, args, train_dataset=rows, eval_dataset={"b": rows}, processing_class=tokenizer
    )


@pytest.mark.parametrize("config", [ImitationRewardConfig, RewardConfig])
def test_both_terms_and_trls_alone_read_the_same(tmp_path, config):
    shapes = (READ, {"prompt": "Why?", **WHOLE})
    one, other = (trained(tmp_path, Dataset.from_list([row] * 2), config) for row in shapes)
    for rows, others in ((one.train_dataset, other.train_dataset), (one.eval_dataset["b"], other.eval_dataset["b"])):
        assert (
            rows["chosen_ids"][:] == others["chosen_ids"][:] and rows["rejected_ids"][:] == others["rejected_ids"][:]
        )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            DatasetDict({"train": Dataset.from_list([READ])}),
            r"train dataset: expected one data set, got a DatasetDict",
        ),
        ([READ], "the train dataset is of type list: expected a datasets.Dataset"),
    ],
)
def test_what_is_no_data_set(rows, message):
    with pytest.raises(ValueError, match=message):
        columns_of(rows, "train")


def test_a_column_that_nobody_reads_is_named(tmp_path):
    rows = Dataset.from_list([{"instruction": "Where?", "chosen": "Here.", "rejected": "There."}] * 2)
    with pytest.warns(UserWarning, match="the train dataset has a column 'instruction', of which nothing is read"):
        trained(tmp_path, rows)
