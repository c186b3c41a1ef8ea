"""A column that looks like a part of the question, and that nobody reads, is named."""

import functools
import warnings

import pytest
from datasets import Dataset

from trl_ext.rewards.checked_reward import checked_reward
from trl_ext.rewards.reward_columns import check_reward_columns
from trl_ext.rewards.routed_product import Route, RoutedProduct
from trl_ext.sequences.unread_columns import warn_of_unread

SYSTEM, USER, ANSWER = (
    {"role": role, "content": text} for role, text in (("system", "Be brief."), ("user", "Why?"), ("assistant", "So."))
)


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"prompt": ["Sum up:"], "input": ["a long text"]}, "input"),
        ({"prompt": ["b", "b"], "system": ["", "Be brief."]}, "system"),
        ({"prompt": ["b"], "history": [[["What?", "That."]]]}, "history"),
        ({"prompt": ["b"], "Question": ["Where?"]}, "Question"),
        ({"prompt": ["Who won?"], "context": ["Korea won."]}, "context"),
        ({"prompt": ["b"], "system_prompt": ["Be brief."]}, "system_prompt"),
        ({"prompt": ["Sum up:"], "text": ["A long text."]}, "text"),
        ({"prompt": ["Why?"], "messages": [[SYSTEM, USER, ANSWER]]}, "messages"),
        ({"prompt": [[USER]], "messages": [[SYSTEM, USER, ANSWER]]}, "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_named_once(columns, name, stream):
    rows = Dataset.from_dict(columns)
    if stream:
        rows = rows.select([len(rows) - 1]).to_iterable_dataset()
    with pytest.warns(
        UserWarning, match=rf"^T\(rows=…\) has a column {name!r}, of which nothing is read, e.g."
    ) as caught:
        warn_of_unread(rows, ["prompt"], call="T(rows=…)")
    assert len(caught) == 1


def test_of_a_stream_the_first_rows_are_looked_at():
    rows = Dataset.from_dict({"prompt": ["b", "b"], "system": ["", "Be brief."]}).to_iterable_dataset()
    with pytest.warns(UserWarning, match="has a column 'system', of which nothing is read, e.g. 'Be brief.' in row 1"):
        warn_of_unread(rows, ["prompt"], call="T")


def test_all_of_a_row_are_named():
    rows = Dataset.from_dict({"prompt": ["a"], "instruction": ["Sum up:"], "input": ["a long text"]})
    with pytest.warns(UserWarning, match=r"^T has the columns \['instruction', 'input'\], of which nothing is read"):
        warn_of_unread(rows, ["prompt"], call="T")


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": ["Q: why?\nA:"], "question": ["why? "], "input": [""], "history": [[]]},
        {"prompt": [[{"role": "system", "content": "Be brief."}]], "system": ["Be brief."]},
        {"prompt": ["a"], "answer": ["4"]},
        {"prompt": ["Why?"], "messages": [[USER, ANSWER, USER | {"content": "And then?"}]]},
        {"prompt": [[USER]], "messages": [[USER | {"content": [{"type": "text", "text": "Why?"}]}]]},
        {"prompt": ["Why?"], "messages": [None]},
        {"prompt": ["Why? "], "text": ["Q: Why?\n A: So."]},
        {"prompt": [[USER | {"content": "Go on: The film was"}]], "text": ["The film was dull."]},
        {"prompt": ["a"], "contexts": ["b"], "texts": ["c"]},
    ],
)
def test_nothing_is_said_of_what_is_shown(columns):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unread(Dataset.from_dict(columns), ["prompt"], call="T")


def test_a_reward_may_read_it():
    def right(completions, query, **columns): ...

    def blind(completions, **columns): ...

    rows = Dataset.from_dict({"prompt": ["a"], "query": ["b"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_reward_columns([right], rows, call="T")
    with pytest.warns(UserWarning, match="has a column 'query'"):
        check_reward_columns([blind], rows, call="T")


def test_a_factor_of_a_product_may_read_it():
    def right(completions, query, **columns): ...

    product = RoutedProduct((Route("open", (right,)),))
    rows = Dataset.from_dict({"prompt": ["a"], "query": ["b"], "query_type": ["open"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reward in (product, checked_reward(product), functools.partial(product)):
            check_reward_columns([reward], rows, call="T")


@pytest.mark.parametrize("name", ["context", "Question", "messages", "text"])
def test_not_of_what_a_reward_is_given_by_its_name(name):
    def reward(completions, context=None, Question=None, messages=None, text=None): ...

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_reward_columns([reward], Dataset.from_dict({"prompt": ["a"], name: ["Where is it?"]}), call="T")
