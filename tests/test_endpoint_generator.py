"""Against a real HTTP server that speaks the two routes, in a thread."""

import json
import logging
import threading
import traceback
from contextlib import suppress

import pytest
from json_server import JsonHandler, JsonServer
from tiny import byte_tokenizer

from trl_ext.generation.endpoint_answers import text_and_end, texts_and_ends
from trl_ext.generation.endpoint_generator import EndpointError, EndpointGenerator
from trl_ext.generation.endpoint_log_probs import EndpointLogProbs
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.query_types import EndpointLabeler
from trl_ext.trainer_kit.seeds import stable_seed

CHAT = [{"role": "user", "content": "Where is Seoul?"}]


class Server(JsonServer):
    """Answers each prompt with numbered texts; `at_most` choices at a time, after `failures` errors."""

    def __init__(self):
        super().__init__(Handler)
        self.requests, self.failures, self.at_most, self.body = [], 0, 100, None
        self.paths, self.spoil = [], lambda answer, request: None  # done to each answer
        self.together = None

    @property
    def asked(self):
        return [body for _, body, _ in self.requests]

    def answer(self, path, request):
        texts = [f"{request['seed']}.{i}" for i in range(min(request["n"], self.at_most))]
        ends = ["stop" if i % 2 == 0 else "length" for i in range(len(texts))]
        chat = path.endswith("chat/completions")
        choices = [
            {"index": i, "finish_reason": end}
            | ({"message": {"role": "assistant", "content": text}} if chat else {"text": " " + text})
            for i, (text, end) in enumerate(zip(texts, ends, strict=True))
        ]
        kind = "chat.completion" if chat else "text_completion"
        return {"id": "0", "object": kind, "created": 0, "model": request["model"], "choices": choices}


class Handler(JsonHandler):
    def do_POST(self):
        request = self.asked()
        with self.server.lock:
            self.server.paths.append(self.path)
            path = self.path.partition("?")[0]
            self.server.requests.append((path, request, self.headers["Authorization"]))
            fails = self.server.failures > 0
            self.server.failures -= fails
        with self.server.one_more():
            if self.server.together is not None:
                with suppress(threading.BrokenBarrierError):
                    self.server.together.wait(5)  # passed only if so many are asked at the same time
        answer = self.server.answer(path, request)
        self.server.spoil(answer, request)
        if fails:
            return self.say({"error": {"message": "out of memory"}}, 500)
        self.say(self.server.body or answer)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def ask(server, prompts=("a",), *, key="secret", rows=None, max_retries=0, concurrency=8, **sampling):
    generator = EndpointGenerator("m", server.url, key, max_retries=max_retries, concurrency=concurrency)
    parts = [Part(0, tuple(rows or range(len(prompts))), tuple(prompts))]
    [(part, samples)] = generator.generate(parts, Sampling(**sampling), Policy(None, byte_tokenizer()))
    assert part is parts[0]
    return samples


def test_text_goes_to_completions_in_order(server):
    samples = ask(server, ["a", "b", "c"], rows=[7, 3, 5], num_generations=2, seed=1)
    assert [(s["row"], s["sample"], s["prompt"]) for s in samples] == [
        (row, sample, prompt) for row, prompt in [(7, "a"), (3, "b"), (5, "c")] for sample in (0, 1)
    ]
    seed = stable_seed(1, 7)
    assert samples[0] == {
        "row": 7,
        "sample": 0,
        "prompt": "a",
        "completion": f" {seed}.0",  # the space with which it goes on from the prompt is kept
        "prompt_ids": None,
        "completion_ids": None,
        "ended": True,
        "generator": "endpoint:m",
        "seed": seed,
    }
    assert [s["ended"] for s in samples] == [True, False] * 3  # "stop", "length"
    assert {path for path, *_ in server.requests} == {"/v1/completions"}


def test_messages_go_to_chat_completions(server):
    samples = ask(server, [CHAT], num_generations=2)
    assert server.requests[0][0] == "/v1/chat/completions"
    assert server.asked[0]["messages"] == CHAT
    assert samples[1]["completion"] == [{"role": "assistant", "content": f"{stable_seed(0, 0)}.1"}]


def test_settings_reach_the_server(server):
    ask(server, num_generations=3, temperature=0.7, top_p=0.9, max_completion_length=17, seed=5)
    assert server.asked[0] == {
        "model": "m",
        "prompt": "a",
        "n": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 17,
        "seed": stable_seed(5, 0),
    }  # and nothing that OpenAI would refuse
    ask(server, top_k=4, min_p=0.1, repetition_penalty=1.2)
    assert {name: server.asked[1][name] for name in ("top_k", "min_p", "repetition_penalty")} == {
        "top_k": 4,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
    }


def test_a_server_that_gives_one_choice_is_asked_again_with_other_seeds(server):
    server.at_most = 1
    samples = ask(server, num_generations=5)
    assert [body["n"] for body in server.asked] == [5, 4, 3, 2, 1]
    assert [s["sample"] for s in samples] == list(range(5))
    assert len({s["completion"] for s in samples}) == 5  # one seed again and again would give one text
    assert [s["completion"] for s in samples] == [f" {s['seed']}.0" for s in samples]


def test_no_choices_is_given_up(server):
    server.at_most = 0
    with pytest.raises(EndpointError, match=r"gave 0 of the 4 completions that prompt 0 should get.*3 answers"):
        ask(server, num_generations=4)
    assert len(server.requests) == 3


def test_temperature_zero_asks_once(server):
    samples = ask(server, num_generations=3, temperature=0.0)
    assert server.asked[0]["n"] == 1
    assert [s["sample"] for s in samples] == [0, 1, 2] and len({s["completion"] for s in samples}) == 1


def test_prompts_of_a_part_are_asked_together_but_not_more_than_allowed(server):
    server.together = threading.Barrier(3)
    ask(server, "abcdef", concurrency=3, num_generations=1)
    assert not server.together.broken and server.most_busy == 3


def test_an_error_that_passes_is_tried_again(server):
    server.failures = 1
    assert len(ask(server, num_generations=2, max_retries=2)) == 2
    assert len(server.requests) == 2


def test_a_server_that_refuses(server):
    server.failures = 10
    with pytest.raises(EndpointError, match=r"base_url='http://127.*500.*out of memory.*resume") as error:
        ask(server)
    assert "secret" not in str(error.value) and isinstance(error.value, ConnectionError)


def test_a_server_that_is_down(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(EndpointError, match=r"EndpointGenerator\('m', base_url='http://127.*refused.*parts are kept"):
        ask(server)


def test_a_server_that_does_not_answer(server):
    server.together = threading.Barrier(2)
    generator = EndpointGenerator("m", server.url, timeout=0.2, max_retries=0)
    with pytest.raises(EndpointError, match=r"did not answer within 0\.2 s"):
        list(generator.generate([Part(0, (0,), ("a",))], Sampling(), Policy(None, byte_tokenizer())))
    server.together.abort()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<html>hello</html>", "something else than JSON.*does its base_url end in /v1"),
        ('{"error": {"message": "no"}}', "3 answers without any"),
        ('{"error": {"message": "the card is on fire"}}', "without any; the last was .*the card is on fire"),
        ('{"detail": "no such route"}', "the last was .*no such route"),
        ("[1, 2]", r"the last was \[1, 2\]"),
        ("null", "the last was null"),
        ('"hello"', 'the last was "hello"'),
        ("7", "the last was 7"),
        ('{"choices": null}', "without any; the last was"),
        ('{"choices": {"text": "a"}}', "without any; the last was"),
        ('{"choices": ["a", null, 3]}', r'the last was {"choices": \["a", null, 3\]}'),
        ('{"choices": [{"message": "a"}, {"message": null}, {}]}', "without any; the last was"),
        ("{broken", "could not be asked"),
    ],
)
def test_answers_that_are_none(server, body, message):
    server.body = body
    with pytest.raises(EndpointError, match=message):
        ask(server)


def test_settings_say_who_it_is_but_not_the_key():
    generator = EndpointGenerator("m", "http://user:password@host:1/v1", "secret")
    settings = generator.settings()
    assert settings == {"generator": "endpoint", "model": "m", "base_url": "http://host:1/v1/"}
    assert json.loads(json.dumps(settings)) == settings
    assert generator.name == "endpoint:m"


def test_key(monkeypatch, server):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    EndpointGenerator("m", "http://host/v1")  # a server of one's own needs none
    with pytest.raises(ValueError, match=r"api_key=None.*OPENAI_API_KEY"):
        EndpointGenerator("m")
    ask(server)
    assert server.requests[0][2] == "Bearer secret"


def test_without_the_client(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(ImportError, match=r'pip install "trl-ext\[endpoint\]"'):
        EndpointGenerator("m", "http://host/v1")


def test_concurrency_below_one():
    with pytest.raises(ValueError, match=r"concurrency=0"):
        EndpointGenerator("m", "http://host/v1", concurrency=0)


GOOD = {"text": "a", "finish_reason": "stop"}


@pytest.mark.parametrize(
    "choice",
    [
        {"finish_reason": "stop"},
        {"text": None, "finish_reason": "stop"},
        {"text": ["a"], "finish_reason": "stop"},
        {"text": "", "finish_reason": "content_filter"},
        {"message": {"role": "assistant", "content": None, "refusal": "I cannot."}, "finish_reason": "stop"},
        {"message": {"role": "assistant", "content": None, "tool_calls": [{}]}, "finish_reason": "tool_calls"},
        {"message": {"role": "assistant", "content": None, "reasoning_content": "Hm"}, "finish_reason": "length"},
        {"message": {"role": "assistant", "content": [{"type": "thinking", "thinking": []}]}},
        {"message": {"content": [{"type": "text", "text": None}]}, "finish_reason": "stop"},
        {"text": "Seo", "finish_reason": "error"},
        {"text": "Seo", "finish_reason": "abort"},
        {"message": {"content": "Seo"}, "finish_reason": "content_filter"},
    ],
)
def test_what_has_no_text_is_no_completion(choice):
    assert text_and_end(choice) is None
    assert texts_and_ends(json.dumps({"choices": [choice, GOOD]})) == ([("a", True)], [choice])


def test_what_has_text():
    parts = [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Se"}, {"type": "text", "text": "oul"}]
    assert text_and_end({"message": {"content": parts}, "finish_reason": "length"}) == ("Seoul", False)
    assert text_and_end({"text": "", "finish_reason": "stop"}) == ("", True)  # it ended at once
    assert text_and_end({"text": "a"}) == ("a", False)  # which does not say that it ended
    assert text_and_end({"text": "\ud83da", "finish_reason": "stop"}) == ("\ufffda", True)  # half of an emoji


def test_choices_without_text_are_asked_for_again_aloud(server):
    def spoil(answer, request):
        for choice in answer["choices"][1:]:
            choice["message"]["content"] = None

    server.spoil = spoil
    with pytest.warns(UserWarning, match="2 of 3 completions of .*Seoul.* came without text.*again"):
        samples = ask(server, [CHAT], num_generations=3)
    assert [body["n"] for body in server.asked] == [3, 2, 1]
    assert [s["completion"][0]["content"] for s in samples] == [f"{s['seed']}.0" for s in samples]
    assert len({s["seed"] for s in samples}) == 3


@pytest.mark.parametrize("reason", ["error", "abort", "content_filter"])
def test_what_the_server_failed_at_is_asked_for_again(server, reason):
    first = stable_seed(0, 0)
    failed = [{"finish_reason": reason, "text": " half"}]
    server.spoil = lambda answer, request: answer.update(choices=failed) if request["seed"] == first else None
    (sample,) = ask(server, num_generations=1)
    assert sample["seed"] == server.asked[1]["seed"] != first and sample["completion"] != " half"
    server.spoil = lambda answer, request: answer.update(choices=failed)
    with pytest.raises(EndpointError, match=f"3 answers without any; the last was .*{reason}"):
        ask(server, num_generations=1)


@pytest.mark.parametrize(("end", "shown"), [({}, "None"), ({"finish_reason": "eos"}, "'eos'")])
def test_what_does_not_say_how_it_ended_is_taken_as_cut_aloud(server, end, shown):
    server.spoil = lambda answer, request: answer.update(choices=[{"text": " a", **end}] * request["n"])
    with pytest.warns(UserWarning, match=rf"says finish_reason={shown}, where .* taken as cut") as caught:
        samples = ask(server, ["a", "b"], num_generations=2, concurrency=1)
    assert [sample["ended"] for sample in samples] == [False] * 4 and len(caught) == 1


def test_an_answer_without_any_is_asked_for_with_another_seed(server):
    first = stable_seed(0, 0)
    server.spoil = lambda answer, request: answer.update(choices=[]) if request["seed"] == first else None
    samples = ask(server, num_generations=2)
    assert [body["n"] for body in server.asked] == [2, 2] and {s["seed"] for s in samples} == {server.asked[1]["seed"]}
    assert server.asked[1]["seed"] != first


def test_keys_reach_the_server_and_nobody_else(server, caplog):
    """Not a message, the settings of a run, its log, or a traceback."""
    caplog.set_level(logging.INFO)
    url = server.url.replace("http://", "http://me:pass%20word@") + "?api-key=query+key&version=2"
    generator = EndpointGenerator("m", url, "bearer", max_retries=0)
    part = Part(0, (0,), ("a",))
    list(generator.generate([part], Sampling(), Policy(None, byte_tokenizer())))
    assert server.paths == ["/v1/completions?api-key=query+key&version=2"]
    server.body = json.dumps(
        {"error": "bad key: query key, query+key, query%20key, bearer, pass%20word, bWU6cGFzcyB3b3Jk"}
    )
    errors = []
    for failures in (0, 1):
        server.failures = failures
        with pytest.raises(EndpointError) as error:
            list(generator.generate([part], Sampling(), Policy(None, byte_tokenizer())))
        errors += traceback.format_exception(error.value)
    told = [generator.name, generator.base_url, json.dumps(generator.settings()), caplog.text, *errors]
    assert "HTTP Request" in caplog.text and "bad key" in "".join(errors)
    assert server.requests[0][2] == "Basic bWU6cGFzcyB3b3Jk"  # me:pass word
    for key in ("query key", "query+key", "query%20key", "bearer", "pass%20word", "pass word", "bWU6cGFz"):
        assert key not in "".join(told)


@pytest.mark.parametrize(
    "url",
    ["localhost:8000/v1?key=secret", "ftp://u:secret@host/v1", "http://", "http://host:no/v1?key=secret", "http://[x"],
)
def test_what_is_no_address(url):
    with pytest.raises(ValueError, match=r"EndpointGenerator\(base_url='.*'\): expected an address such as") as error:
        EndpointGenerator("m", url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "key", ["sk-secret\n", " sk-secret", "sk-secret\r\n", "“sk-secret”", "sk-secret\x00", ["sk-secret"]]
)
def test_a_key_that_no_request_carries_is_refused_unsaid(server, key, monkeypatch):
    """Clients and their loggers repeat a header that is none."""
    for call in (EndpointGenerator, EndpointLabeler):
        with pytest.raises(ValueError, match=rf"^{call.__name__}: expected a key of visible ASCII") as error:
            call("m", server.url, key)
        assert "sk-secret" not in str(error.value)
    if isinstance(key, str) and "\x00" not in key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ValueError, match=r"EndpointLogProbs: .*OPENAI_API_KEY") as error:
            EndpointLogProbs("m", server.url)
        assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize("start", range(40, 200, 20))
def test_an_answer_is_cut_behind_its_keys(server, start, monkeypatch):
    """Half of a key is none to hide, and a server may write a slash in JSON with a backslash."""
    key, text = "sk/first-second-third", "x" * start
    monkeypatch.setenv("OPENAI_API_KEY", key)
    server.answer = lambda path, request: {}
    bodies = [
        text + key,
        json.dumps({"error": text + key}).replace("/", "\\/"),
        json.dumps({"error": text + key}),
        json.dumps({"choices": [{"message": {"content": text + key}}]}),
    ]
    for body in bodies:
        server.body = body
        with pytest.raises(EndpointError) as raised:
            EndpointLogProbs("m", server.url, max_retries=0).option_log_probs(CHAT, ("1", "2"))
        said = str(raised.value)
        if "choices" not in body:
            with pytest.raises(EndpointError) as raised:
                ask(server, [CHAT], key=key)
            said += str(raised.value)
        assert "xx" in said and "sk/f" not in said and "sk\\" not in said, said


def test_nobody_shows_a_key(server):
    """Nor does what is written of whoever has one."""
    generator, labeler = EndpointGenerator("m", server.url, "sk-secret"), EndpointLabeler("m", server.url, "sk-secret")
    told = [repr(generator), str(generator), repr(labeler), labeler.name, generator.name, repr(generator._secrets)]
    assert "sk-secret" not in "".join(told)


@pytest.mark.parametrize("call", [EndpointGenerator, EndpointLogProbs, EndpointLabeler])
def test_who_is_asked_is_text(call):
    for model in (3, None, "", " "):
        with pytest.raises(ValueError, match=r"\(model=.*expected the name of a model on the server"):
            call(model, "http://host/v1")
    with pytest.raises(ValueError, match=r"\(base_url=3\): expected an address such as"):
        call("m", 3)
