"""What a server refuses is named as who asked knows it: by its row, its prompt, its step."""

import pytest
from ai_feedback_case import PREAMBLE, pairs
from log_prob_server import LogProbServer
from tiny import byte_tokenizer, tiny_llama

from trl_ext import (
    EndpointGenerator,
    EndpointLabeler,
    EndpointLogProbs,
    PreferenceLabeler,
    SelfInstruct,
    SelfInstructConfig,
    label_query_types,
)
from trl_ext.generation.endpoint_errors import RefusedRequest, shown_prompt
from trl_ext.generation.protocol import Part, Policy, Sampling

LONG = "long " * 400 + "and then the end?"


@pytest.fixture
def server():
    tokenizer = byte_tokenizer()
    server = LogProbServer(tiny_llama(tokenizer, max_position_embeddings=4096), tokenizer)
    server.limit = 2100  # characters
    yield server
    server.close()


def generated(server, keep):
    """Rows as they are numbered by who has them."""
    parts = [Part(0, (7, 8), ("Why?", [{"role": "user", "content": LONG}]))]
    list(EndpointGenerator("m", server.url).generate(parts, Sampling(1, 1), Policy(None, None)))


def typed(server, keep):
    """Row 0 has a type, and asks nobody."""
    rows = [{"prompt": text, "query_type": kind} for text, kind in ((LONG, "open"), ("Why?", None), (LONG, None))]
    label_query_types(as_rows(rows), EndpointLabeler("m", server.url, max_tokens=1), keep=keep)


def labelled(server, keep, **options):
    rows = pairs(3).to_list()
    rows[1]["prompt"] = LONG
    PreferenceLabeler(EndpointLogProbs("m", server.url), preamble=PREAMBLE, **options).label(rows, keep=keep)


def explained(server, keep):
    labelled(server, keep, rationale=True, max_rationale_length=1)


def instructed(server, keep):
    seeds = [
        {"instruction": f"{i} {LONG}", "input": "a", "output": "b", "is_classification": bool(i)} for i in range(2)
    ]
    config = SelfInstructConfig(1, human_in_context=2, made_in_context=0, chat=True)
    SelfInstruct(generator=EndpointGenerator("m", server.url), config=config).run(seeds, keep.parent / "made")


def as_rows(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    ("ask", "named", "remedy"),
    [
        (generated, "prompt 8, of 2,017 characters, 'long long ", "larger window"),
        (typed, "label_query_types: row 2, of 2,017 characters, 'long long ", "give its `query_type` yourself"),
        (labelled, "PreferenceLabeler.label: row 1, of 2,017 characters of prompt", "shorten or drop that row"),
        (explained, "PreferenceLabeler.label: row 1, of 2,017 characters of prompt", "shorten or drop that row"),
        (instructed, "SelfInstruct.run: a request for instructions, of 4,0", "fewer (num_examples, human_in_context)"),
    ],
)
def test_who_asked_is_told_what_was_refused_and_what_to_do(ask, named, remedy, server, tmp_path):
    with pytest.raises(RefusedRequest) as caught:
        ask(server, tmp_path / "kept.jsonl")
    said = str(caught.value)
    assert said.startswith(named) and remedy in said
    assert said.count("got no answer") == said.count("maximum context length") == 1
    assert "once it answers again" not in said  # it would refuse again


def test_a_long_prompt_is_shown_by_its_beginning_and_its_end():
    assert shown_prompt([{"role": "user", "content": "x" * 200 + "end"}]).endswith("xend',")
    assert shown_prompt("y" * 120) == f"of 120 characters, {'y' * 120!r},"
    assert shown_prompt("a" + "y" * 120) == f"of 121 characters, {'a' + 'y' * 39 + ' … ' + 'y' * 80!r},"
