"""Against a real HTTP server, in a thread."""

import pytest
from datasets import Dataset
from json_server import JsonHandler, JsonServer

from trl_ext import EndpointLabeler, label_query_types
from trl_ext.generation.endpoint_generator import EndpointError
from trl_ext.query_types.query_questions import type_of

ROWS = Dataset.from_dict({"prompt": [f"tell {i}" if i % 2 else f"sum {i}" for i in range(6)]})
TYPES = ["closed", "open"] * 3


class Server(JsonServer):
    """Says the letter of 'open' for queries that begin with "tell"; `spoil` makes another answer of one, None: none."""

    def __init__(self):
        super().__init__(Handler)
        self.asked, self.spoil, self.finish = [], lambda query, answer: answer, "stop"


class Handler(JsonHandler):
    def do_POST(self):
        text = self.asked()["messages"][-1]["content"]
        query = text.partition("Query:\n")[2].partition("\n")[0]
        kind = "open" if query.startswith("tell") else "closed"
        with self.server.one_more():
            self.server.asked.append(query)
        said = self.server.spoil(query, "A" if f"A) {kind}" in text else "B")
        if said is None:
            return self.say({"error": {"message": "out of memory"}}, 500)
        message = {"role": "assistant", "content": said or None}
        choice = {"index": 0, "finish_reason": self.server.finish, "message": message}
        self.say({"id": "0", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def labeler(server, **options):
    return EndpointLabeler("m", server.url, "secret", **{"max_retries": 0, "concurrency": 2} | options)


def test_it_is_asked_in_both_orders(server, tmp_path):
    labelled = label_query_types(ROWS, labeler(server), keep=tmp_path / "labels.jsonl")
    assert labelled["query_type"][:] == TYPES and labelled["query_type_confidence"][:] == [1.0] * 6
    assert sorted(server.asked) == sorted(ROWS["prompt"][:] * 2)


def test_only_so_many_are_asked_at_a_time(server, tmp_path):
    server.wait = 0.03
    label_query_types(ROWS, labeler(server, concurrency=3), keep=tmp_path / "labels.jsonl")
    assert 1 < server.most_busy <= 3


def test_one_letter_for_both_orders_is_no_type(server, tmp_path):
    server.spoil = lambda query, answer: "A" if query == "sum 0" else answer
    with pytest.warns(UserWarning, match="1 that the endpoint gave two different types"):
        labelled = label_query_types(ROWS, labeler(server), keep=tmp_path / "labels.jsonl")
    assert labelled["query_type"][:] == [None, *TYPES[1:]]
    assert labelled["query_type_confidence"][0] == 0.5


def test_what_came_before_it_went_down_is_kept(server, tmp_path):
    """The same call asks for the rest alone."""
    keep = tmp_path / "labels.jsonl"
    server.spoil = lambda query, answer: None if query == "sum 4" else answer
    with pytest.raises(EndpointError, match="out of memory"):
        label_query_types(ROWS, labeler(server), keep=keep)
    kept = len(keep.read_text().splitlines())
    assert 3 <= kept <= 5  # sum 4 is the fifth; what was in flight beside it is kept too
    server.spoil, server.asked = lambda query, answer: answer, []
    assert label_query_types(ROWS, labeler(server), keep=keep)["query_type"][:] == TYPES
    assert len(server.asked) == 2 * (6 - kept)


def test_a_slow_one_is_given_up(server, tmp_path):
    server.wait = 0.5
    with pytest.raises(EndpointError, match=r"did not answer within 0\.05 s"):
        label_query_types(ROWS, labeler(server, timeout=0.05), keep=tmp_path / "labels.jsonl")


def test_an_answer_of_something_else_is_asked_again_next_time(server, tmp_path):
    keep = tmp_path / "labels.jsonl"
    server.spoil = lambda query, answer: "It depends." if query == "tell 3" else answer
    with pytest.warns(UserWarning, match="1 where the endpoint answered something else"):
        labelled = label_query_types(ROWS, labeler(server), keep=keep)
    assert labelled["query_type"][:] == [*TYPES[:3], None, *TYPES[4:]]
    server.spoil, server.asked = lambda query, answer: answer, []
    assert label_query_types(ROWS, labeler(server), keep=keep)["query_type"][:] == TYPES
    assert server.asked == ["tell 3"] * 2


@pytest.mark.parametrize("finish", ["length", "stop", "content_filter"])
def test_no_text_leaves_one_query_without_a_type(server, tmp_path, finish):
    """A model that thinks is cut before it speaks; the others keep what they were given."""
    server.spoil = lambda query, answer: "" if query == "tell 3" else answer
    server.finish = finish
    if finish == "content_filter":
        server.spoil = lambda query, answer: ""
    with pytest.warns(UserWarning, match=r"where the endpoint answered something else.*larger max_tokens"):
        labelled = label_query_types(ROWS, labeler(server), keep=tmp_path / "labels.jsonl")
    wanted = [None] * 6 if finish == "content_filter" else [*TYPES[:3], None, *TYPES[4:]]
    assert labelled["query_type"][:] == wanted


def test_a_server_that_fails_is_still_an_error(server, tmp_path):
    server.spoil, server.finish = lambda query, answer: "", "abort"
    with pytest.raises(EndpointError, match="answers without any"):
        label_query_types(ROWS, labeler(server), keep=tmp_path / "labels.jsonl")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("B", "closed"),
        ("b)", "closed"),
        ("**B**", "closed"),
        ("Answer: a", "open"),
        ("The answer is B", "closed"),
        ("The answer is B.", "closed"),
        ("I would say \\boxed{A}", "open"),
        ("B because one is right", "closed"),
        ("A is right", "open"),
        ("A closed question.", "closed"),
        ("a closed question", "closed"),
        ("Closed.", "closed"),
        ("<think>A? B?</think>B", "closed"),
        ("<think>A, since", None),
        ("A or B", None),
        ("Either A or B.", None),
        ("It depends.", None),
        ("open or closed", None),
        ("", None),
    ],
)
def test_what_an_answer_says(answer, kind):
    assert type_of(answer, ("open", "closed")) == kind
    assert kind is None or "losed" in answer or type_of(answer, ("closed", "open")) != kind


def test_no_server_at_all(tmp_path):
    with pytest.raises(EndpointError, match=r"^EndpointLabeler\('m', .*could not be asked"):
        label_query_types(
            ROWS, EndpointLabeler("m", "http://127.0.0.1:9/v1", max_retries=0), keep=tmp_path / "a.jsonl"
        )


def test_it_needs_a_file(server):
    with pytest.raises(ValueError, match=r"keep=None.*would be lost.*keep='labels\.jsonl'"):
        label_query_types(ROWS, labeler(server))
    assert server.asked == []


def test_what_is_refused(server):
    with pytest.raises(ValueError, match=r"EndpointLabeler\(concurrency=0\)"):
        labeler(server, concurrency=0)
    with pytest.raises(ValueError, match=r"EndpointLabeler\(max_tokens=0\)"):
        labeler(server, max_tokens=0)
