"""Against a real HTTP server that speaks the two routes, in a thread."""

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tiny import byte_tokenizer

from trl_ext.generation.endpoint_generator import EndpointError, EndpointGenerator
from trl_ext.generation.protocol import Part, Policy, Sampling
from trl_ext.trainer_kit.seeds import stable_seed

CHAT = [{"role": "user", "content": "Where is Seoul?"}]


class Server(ThreadingHTTPServer):
    """Answers each prompt with numbered texts; `at_most` choices at a time, after `failures` errors."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.failures, self.at_most, self.body = [], 0, 100, None
        self.busy, self.most_busy, self.together = 0, 0, None
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        """Quiet where a client that waited too long has gone."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

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


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, request, self.headers["Authorization"]))
            fails = self.server.failures > 0
            self.server.failures -= fails
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
        if self.server.together is not None:
            with suppress(threading.BrokenBarrierError):
                self.server.together.wait(5)  # passed only if so many are asked at the same time
        with self.server.lock:
            self.server.busy -= 1
        body = self.server.body or json.dumps(self.server.answer(self.path, request))
        if fails:
            body = json.dumps({"error": {"message": "out of memory"}})
        self.send_response(500 if fails else 200)
        self.send_header("Content-Type", "application/json" if body.startswith("{") else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, prompts=("a",), *, rows=None, max_retries=0, concurrency=8, **sampling):
    generator = EndpointGenerator("m", server.url, "secret", max_retries=max_retries, concurrency=concurrency)
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
