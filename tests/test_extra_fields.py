"""Fields of a request that one's own server knows: they reach it on every path, and decide whose answers are kept."""

import json
from pathlib import Path

import pytest
from ai_feedback_case import PREAMBLE, pairs
from cli_case import refused, write_rows
from log_prob_server import LogProbServer
from tiny import byte_tokenizer, tiny_llama

from trl_ext import EndpointGenerator, EndpointLabeler, EndpointLogProbs, PreferenceLabeler
from trl_ext.cli import main
from trl_ext.generation.protocol import Part, Policy, Sampling

THINKS_NOT = {"chat_template_kwargs": {"enable_thinking": False}}
CHAT = [{"role": "user", "content": "Hi."}]
pytestmark = pytest.mark.filterwarnings("ignore:.*of its probability to the answers", "ignore:.*got no type")


@pytest.fixture
def server():
    tokenizer = byte_tokenizer()
    server = LogProbServer(tiny_llama(tokenizer, max_position_embeddings=2048), tokenizer)
    yield server
    server.close()


def fields(server) -> list[dict]:
    return [body.get("chat_template_kwargs") for _, body, _ in server.requests]


def test_they_go_along_with_what_sampling_asks_for(server):
    generator = EndpointGenerator("m", server.url, extra_body=THINKS_NOT)
    for prompt in ("Hi.", CHAT):
        sampling = Sampling(num_generations=1, max_completion_length=2, top_k=3)
        list(generator.generate([Part(0, (0,), (prompt,))], sampling, Policy(None, None)))
    assert [body["top_k"] for _, body, _ in server.requests] == [3, 3]
    assert fields(server) == [{"enable_thinking": False}] * 2


def test_answers_with_others_are_others(server, tmp_path):
    def labels(**options):
        endpoint = EndpointLogProbs("m", server.url, **options)
        PreferenceLabeler(endpoint, preamble=PREAMBLE).label(pairs(1), keep=tmp_path / "kept.jsonl")
        return len(server.requests)

    assert [labels(), labels(extra_body=THINKS_NOT), labels(extra_body=THINKS_NOT), labels(extra_body={})] == [
        2,
        4,
        4,
        4,
    ]
    assert fields(server) == [None] * 2 + [{"enable_thinking": False}] * 2


def test_settings_and_names_have_them():
    url = "http://h/v1"
    assert EndpointGenerator("m", url, extra_body=THINKS_NOT).settings()["extra_body"] == THINKS_NOT
    assert "extra_body" not in EndpointGenerator("m", url).settings()
    assert (
        EndpointLabeler("m", url).name + f" {json.dumps(THINKS_NOT)}"
        == EndpointLabeler("m", url, extra_body=THINKS_NOT).name
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": 1}, "a request says 'temperature' already"),
        ({"a": float("nan")}, "as JSON takes them"),
        ({1: 2}, "as JSON takes them"),
        (["a"], "as JSON takes them"),
        ({"a": object()}, "as JSON takes them"),
    ],
)
@pytest.mark.parametrize("kind", [EndpointGenerator, EndpointLogProbs])
def test_fields_that_are_none(kind, given, said):
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(extra_body=.*{said}"):
        kind("m", "http://h/v1", extra_body=given)


def test_from_a_shell(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_rows(Path("pairs.jsonl"), pairs(1).to_list())
    write_rows(Path("prompts.jsonl"), [{"prompt": CHAT}])
    flags = ("--endpoint", "--model", "m", "--base_url", server.url, "--extra_body", json.dumps(THINKS_NOT))
    main(["label", "--preferences", "pairs.jsonl", "--output", "out.parquet", *flags])
    main(["label", "--query_types", "prompts.jsonl", "--output", "typed.parquet", *flags])
    sampled = (
        "--prompts",
        "prompts.jsonl",
        "--output",
        "s.parquet",
        "--num-generations",
        "1",
        "--base-url",
        server.url,
    )
    main(["generate", "--generator", "endpoint", "--model", "m", *sampled, "--extra-body", json.dumps(THINKS_NOT)])
    assert fields(server) == [{"enable_thinking": False}] * 5
    label = ("label", "--preferences", "pairs.jsonl", "--output", "new.parquet", "--model", "m")
    assert "expected JSON such as" in refused(
        capsys, *label, "--endpoint", "--extra_body", "{a}", "--base_url", server.url
    )
    assert "--extra_body: it does nothing without --endpoint" in refused(capsys, *label, "--extra_body", "{}")
    generate = ("generate", "--prompts", "prompts.jsonl", "--output", "t.parquet", "--model", "m")
    assert "--extra-body {}: --generator transformers has no use" in refused(capsys, *generate, "--extra-body", "{}")
