import math
import re

import pytest
from datasets import Dataset, IterableDataset
from tiny import byte_tokenizer, merging_tokenizer

from trl_ext.reward_modeling.preference_data import check_pairs, prompt_tokens, with_prompt_lengths, without_ties


def row_of(tokenizer, **row):
    """A row as TRL leaves it: tokenised, with EOS if it is text."""
    whole = [row.get("prompt", type(row["chosen"])()) + row[side] for side in ("chosen", "rejected")]
    if isinstance(whole[0], str):
        ids = [tokenizer(text + tokenizer.eos_token)["input_ids"] for text in whole]
    else:
        ids = [tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"] for messages in whole]
    return row | {"chosen_ids": ids[0], "rejected_ids": ids[1]}


def completion_of(tokenizer, **row) -> str:
    """The text of the tokens that are taken for the chosen completion."""
    row = row_of(tokenizer, **row)
    return tokenizer.decode(row["chosen_ids"][prompt_tokens(row, tokenizer) :])


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_prompt_given_as_text(tokenizer):
    """The pair's own common beginning, `no`, belongs to the completions."""
    assert completion_of(tokenizer, prompt="Why? ", chosen="not now", rejected="nothing") == "not now<eos>"


def test_prompt_implied_by_text(tokenizer):
    assert completion_of(tokenizer, chosen="Why? not now", rejected="Why? nothing") == " now<eos>"


def test_prompt_given_as_messages(tokenizer):
    row = {"prompt": [user("Why?")], "chosen": [assistant("not now")], "rejected": [assistant("nothing")]}
    assert completion_of(tokenizer, **row) == "not now<eos>"


def test_prompt_implied_by_messages(tokenizer):
    row = {"chosen": [user("Why?"), assistant("not now")], "rejected": [user("Why?"), assistant("nothing")]}
    assert completion_of(tokenizer, **row) == "not now<eos>"


def test_longer_conversation_with_system_and_shared_answer(tokenizer):
    shared = [{"role": "system", "content": "Be brief."}, user("Why?"), assistant("So."), user("Really?")]
    row = {"chosen": [*shared, assistant("not now")], "rejected": [*shared, assistant("nothing")]}
    assert completion_of(tokenizer, **row) == "not now<eos>"


def test_last_message_is_the_completion_even_if_the_pair_shares_it(tokenizer):
    chosen = [user("Why?"), assistant("So.")]
    row = {"chosen": chosen, "rejected": [*chosen, user("Really?"), assistant("Yes.")]}
    assert completion_of(tokenizer, **row) == "So.<eos>"


def test_messages_that_share_nothing_fall_back_to_tokens(tokenizer):
    row = {"chosen": [user("Why?"), assistant("a")], "rejected": [user("Where?"), assistant("a")]}
    assert completion_of(tokenizer, **row) == "y?\na:a<eos>"  # after `u:Wh`


def test_template_options_reach_the_prompt(tokenizer):
    tokenizer.chat_template = "{% if shout %}LOUD {% endif %}" + tokenizer.chat_template
    row = {"prompt": [user("Why?")], "chosen": [assistant("no")], "rejected": [assistant("yes")]}
    ids = [
        tokenizer.apply_chat_template(row["prompt"] + row[side], return_dict=True, shout=True)["input_ids"]
        for side in ("chosen", "rejected")
    ]
    row |= {"chosen_ids": ids[0], "rejected_ids": ids[1], "chat_template_kwargs": {"shout": True}}
    assert tokenizer.decode(ids[0][prompt_tokens(row, tokenizer) :]) == "no<eos>"


def test_template_that_renders_the_prompt_otherwise(tokenizer):
    """A generation prompt with more than the conversation has: the completion begins where they part."""
    tokenizer.chat_template = tokenizer.chat_template.replace("a:{% endif %}", "a:<think></think>{% endif %}")
    row = {"prompt": [user("Why?")], "chosen": [assistant("no")], "rejected": [assistant("yes")]}
    assert completion_of(tokenizer, **row) == "no<eos>"


def test_tokenised_pairs_have_their_common_prefix_as_prompt():
    """Even beside a column `prompt`: how it was turned into these tokens is unknown."""
    row = {"prompt": "abc", "chosen_ids": [9, 8, 5, 1], "rejected_ids": [9, 8, 6, 1]}
    assert prompt_tokens(row, tokenizer=None) == 2


def test_bos_belongs_to_the_prompt():
    tokenizer = byte_tokenizer(bos=True)
    assert prompt_tokens(row_of(tokenizer, prompt="", chosen="ab", rejected="cd"), tokenizer) == 1
    assert prompt_tokens(row_of(tokenizer, chosen="ab", rejected="cd"), tokenizer) == 1


def test_token_across_the_boundary_is_the_completions():
    """`ab` + `ca`: the prompt alone is [a, b], with the completion [a, bc, a]; bc is predicted."""
    tokenizer = merging_tokenizer()
    row = row_of(tokenizer, prompt="ab", chosen="ca", rejected="aa")
    assert tokenizer.convert_ids_to_tokens(row["chosen_ids"]) == ["a", "bc", "a", "<eos>"]
    assert prompt_tokens(row, tokenizer) == 1


def test_column_of_prompt_lengths(tokenizer):
    rows = [row_of(tokenizer, prompt="Why? ", chosen="yes", rejected="no")] * 2
    assert with_prompt_lengths(Dataset.from_list(rows), tokenizer)["num_prompt_tokens"] == [5, 5]


def test_ties_are_dropped_with_one_warning_and_their_number():
    pairs = Dataset.from_dict({"chosen_ids": [[1, 2], [3], [4]], "rejected_ids": [[1, 2], [5], [4]]})
    with pytest.warns(UserWarning, match="drops 2 of 3 pairs of the train dataset") as caught:
        kept = without_ties(pairs, "train")
    assert kept["chosen_ids"] == [[3]] and len(caught) == 1


def test_ties_of_a_stream_are_dropped_with_one_warning():
    pairs = Dataset.from_dict({"chosen_ids": [[1, 2], [3], [4]], "rejected_ids": [[1, 2], [5], [4]]})
    with pytest.warns(UserWarning, match="drops pairs of the train dataset") as caught:
        kept = list(without_ties(pairs.to_iterable_dataset(), "train"))
    assert [row["chosen_ids"] for row in kept] == [[3]] and len(caught) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_but_ties(stream):
    pairs = Dataset.from_dict({"chosen_ids": [[1], [2]], "rejected_ids": [[1], [2]]})
    pairs = pairs.to_iterable_dataset() if stream else pairs
    with pytest.raises(ValueError, match=r"no pair of the eval dataset is left .* are equal in each"):
        without_ties(pairs, "eval")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        ({"chosen": "", "rejected": "no"}, "'chosen' .got ''"),
        ({"chosen": "yes", "rejected": None}, "'rejected' .got None"),
        ({"chosen": " \n", "rejected": "no"}, "'chosen'"),
        ({"chosen": [], "rejected": [assistant("no")]}, r"'chosen' .got \[\]"),
        ({"chosen": [user("Why?"), assistant("")], "rejected": [assistant("no")]}, "'chosen'"),
        ({"chosen_ids": [], "rejected_ids": [1]}, r"'chosen_ids' .got \[\]"),
    ],
)
def test_row_without_completion_is_named(bad, shown, stream):
    good = {name: [assistant("yes")] if name == "chosen" else value or [1] for name, value in bad.items()}
    if isinstance(bad[next(iter(bad))], str):
        good = {"chosen": "yes", "rejected": "no"}
    pairs = Dataset.from_list([good, good, bad])
    pairs = pairs.to_iterable_dataset() if stream else pairs
    with pytest.raises(ValueError, match=f"row 2 of the train dataset has no completion in column {shown}"):
        list(check_pairs(pairs, list(bad), "train"))


def test_tool_call_is_a_completion():
    called = [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}]
    pairs = Dataset.from_list([{"chosen": called, "rejected": called}])
    assert len(check_pairs(pairs, ["chosen", "rejected"], "train")) == 1


def test_missing_column():
    with pytest.raises(ValueError, match=r"columns \['prompt', 'completion'\]; expected 'chosen' and 'rejected'"):
        check_pairs(Dataset.from_dict({}), ["prompt", "completion"], "train")


def test_prompt_longer_than_the_sequence():
    pairs = Dataset.from_dict({"chosen_ids": [[1, 2]], "rejected_ids": [[1, 3]], "num_prompt_tokens": [2]})
    with pytest.raises(
        ValueError, match="row 0 of the train dataset has num_prompt_tokens=2, which leaves no completion"
    ):
        check_pairs(pairs, pairs.column_names, "train")


@pytest.mark.parametrize("margin", [None, "0.5", math.nan, -math.inf, 1e39, [0.5]])
@pytest.mark.parametrize("tokens", [False, True])
def test_margins_that_the_loss_cannot_take(margin, tokens):
    """A list would be broadcast over the batch."""
    pair = {"chosen_ids": [1, 2], "rejected_ids": [1, 3]} if tokens else {"chosen": "a", "rejected": "b"}
    fine = [pair | {"margin": 1.0}] if isinstance(margin, float | None) else []
    rows = Dataset.from_list([*fine, pair | {"margin": margin}])
    said = f"the margin of row {len(fine)} of the eval dataset is {margin!r}: expected a finite"
    with pytest.raises(ValueError, match=re.escape(said)):
        check_pairs(rows, rows.column_names, "eval")


@pytest.mark.parametrize("complete", [False, True])
def test_margins_of_a_stream_are_looked_at_as_they_come(complete):
    rows = [{"chosen": "a", "rejected": "b", "margin": margin} for margin in [0.5] * 40 + [math.nan]]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    read = check_pairs(stream, ["chosen", "rejected", "margin"], "train", complete=complete)
    with pytest.raises(ValueError, match="the margin of row 40 of the train dataset is nan: expected a finite number"):
        list(read)


@pytest.mark.parametrize("margins", [[0, 3], [0.5, -1e38], [True, False]])
def test_margins_that_it_can(margins):
    rows = Dataset.from_dict({"chosen": ["a", "b"], "rejected": ["c", "d"], "margin": margins})
    assert check_pairs(rows, rows.column_names, "train")["margin"][:] == margins
