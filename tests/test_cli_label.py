"""`trl-ext label`: preferences and query types, by a model in place and by a server, stopped and gone on with."""

import json
import os
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ai_feedback_case import pairs
from cli_case import refused, write_rows
from forked import start
from log_prob_server import LogProbServer
from tiny import byte_tokenizer, tiny_llama

from trl_ext import LanguageModelLabeler, PreferenceLabeler
from trl_ext.cli import main
from trl_ext.cli.command_words import in_words_of
from trl_ext.query_types.labelling import OTHERS

pytestmark = pytest.mark.filterwarnings("ignore:.*of its probability to the answers")
LABEL = ["label", "--preferences", "pairs.jsonl", "--model", "model", "--output", "labelled.parquet"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_llama(byte_tokenizer(), max_position_embeddings=2048).save_pretrained("model")
    byte_tokenizer().save_pretrained("model")
    write_rows(Path("pairs.jsonl"), pairs(4).to_list())
    return tmp_path


def test_preferences_as_the_labeler_gives_them(here, capsys):
    main([*LABEL, "--preamble", "harmlessness", "--json", "report.json"])
    told = capsys.readouterr().out
    expected = PreferenceLabeler("model", preamble="harmlessness").label(pairs(4))
    assert pq.read_table("labelled.parquet").to_pylist() == expected.to_list()
    assert "same place after the swap" in told and told.splitlines()[-1] == "labelled.parquet: 4 rows"
    report = json.loads(Path("report.json").read_text())
    assert report["pairs"] == 4 and report["asked"] == 4 and report["agreement"] is None


def test_the_same_command_again_asks_nobody(here, capsys):
    main(LABEL)
    capsys.readouterr()
    main(LABEL)
    told = capsys.readouterr().out
    assert "0 asked, 0 tokens" in told and "Complete already. labelled.parquet: 4 rows" in told
    assert len(Path("labelled.parquet.answers.jsonl").read_text().splitlines()) == 4
    assert "something else" in refused(capsys, *LABEL, "--preamble", "summarisation")


def test_own_words_and_examples(here, capsys):
    Path("words.txt").write_text("P {prompt}\n1 {completion_1}\n2 {completion_2}")
    write_rows(Path("shown.jsonl"), [{"prompt": "e", "completion_1": "x", "completion_2": "y", "better": 2}])
    main([*LABEL, "--preamble", "words.txt", "--examples", "shown.jsonl"])
    words = Path("words.txt").read_text()
    expected = PreferenceLabeler("model", preamble=words, examples=[("e", "x", "y", 2)]).label(pairs(4))
    assert pq.read_table("labelled.parquet").to_pylist() == expected.to_list()


def test_columns_of_other_names_and_jsonl(here):
    write_rows(Path("pairs.jsonl"), [{"prompt": "q", "a": "x", "b": "y"}])
    main([*LABEL[:-1], "labelled.jsonl", "--columns", "completion_1=a", "completion_2=b"])
    [row] = map(json.loads, Path("labelled.jsonl").read_text().splitlines())
    assert {row["chosen"], row["rejected"]} == {"x", "y"} and row["chosen_probability"] >= 0.5


def test_query_types_by_the_shipped_classifier_and_by_a_model(here, capsys):
    rows = [{"prompt": "Write a poem about the sea."}, {"prompt": "What is the capital of Peru?"}]
    write_rows(Path("prompts.jsonl"), rows)
    main(["label", "--query_types", "prompts.jsonl", "--output", "typed.parquet"])
    assert pq.read_table("typed.parquet")["query_type"].to_pylist() == ["open", "closed"]
    cost, said = capsys.readouterr().out.splitlines()[-2:]
    assert cost.startswith("cost: 2 asked, 0 tokens, ") and said == "typed.parquet: 2 rows: 1 open, 1 closed"
    main(["label", "--query_types", "prompts.jsonl", "--model", "model", "--output", "other.parquet"])
    assert None not in pq.read_table("other.parquet")["query_type"].to_pylist()
    labeler = LanguageModelLabeler("model")
    list(labeler.label([row["prompt"] for row in rows]))
    assert f"cost: 2 asked, {labeler.tokens:,} tokens, " in capsys.readouterr().out and labeler.tokens > 4 * 20
    kept = Path("other.parquet.answers.jsonl").read_text().splitlines()
    assert len(kept) == 2 and "language model" in json.loads(kept[0])["labeler"]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret")
    tokenizer = byte_tokenizer()
    server = LogProbServer(tiny_llama(tokenizer, max_position_embeddings=2048), tokenizer)
    yield server
    server.close()


def test_query_types_by_a_server(here, server, monkeypatch, capsys):
    """Asked in both orders; an error that passes is asked again."""
    write_rows(Path("prompts.jsonl"), [{"prompt": f"{i}?"} for i in range(3)])
    server.faults = [500]
    monkeypatch.setattr(server, "answer", lambda request: _said(request, "A") | {"usage": {"total_tokens": 7}})
    options = ["label", "--query_types", "prompts.jsonl", "--output", "typed.parquet"]
    main([*options, "--endpoint", "--model", "m", "--base_url", server.url])
    assert "cost: 3 asked, 42 tokens, " in capsys.readouterr().out
    assert len(server.requests) == 7  # "A" in both orders is no type
    assert pq.read_table("typed.parquet")["query_type"].to_pylist() == [None] * 3
    assert len(Path("typed.parquet.answers.jsonl").read_text().splitlines()) == 3


def _said(request: dict, text: str) -> dict:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"id": "0", "object": "x", "created": 0, "model": request["model"], "choices": [choice]}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_it_waits_for_what_is_asked_and_goes_on(number, here, server, capsys):
    """Code 130 and one line; then the same command asks for the rest alone: all in all each once."""
    write_rows(Path("pairs.jsonl"), pairs(12).to_list())
    server.wait = 0.1
    options = [*LABEL, "--endpoint", "--base_url", server.url, "--concurrency", "2"]
    listens = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    Path("command.py").write_text(f"{listens}from trl_ext.cli import main\n\nmain()")
    process = start("command.py", *options, output=here / "told")
    keep = Path("labelled.parquet.answers.jsonl")
    while not (keep.exists() and keep.read_bytes().count(b"\n") >= 2):
        assert process.is_alive(), Path("told.err").read_text()
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join()
    told = Path("told.err").read_text()
    assert process.exitcode == 130 and "Traceback" not in told and "sk-a-secret" not in told + keep.read_text()
    assert (
        told.splitlines()[-1] == "trl-ext label: stopped. What is saved is kept: the same command goes on from there."
    )
    kept = keep.read_bytes().count(b"\n")
    assert 2 <= kept < 12 and len(server.requests) == 2 * kept and not Path("labelled.parquet").exists()
    server.wait = 0.0
    main(options)
    assert len(server.requests) == 24 and pq.read_table("labelled.parquet").num_rows == 12


def test_progress_is_a_line_with_rate_and_cost(here, server, capsys, monkeypatch):
    monkeypatch.setattr("trl_ext.cli.generate_progress.EVERY", 0.0)
    main([*LABEL, "--endpoint", "--base_url", server.url])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("labelling: ")]
    assert len(lines) == 4 and lines[-1].startswith("labelling: 4 of 4 pairs, ")
    assert "pairs/s, " in lines[-1] and lines[-1].endswith(" tokens")


def test_query_types_show_what_they_cost(here, server, capsys, monkeypatch):
    monkeypatch.setattr("trl_ext.cli.generate_progress.EVERY", 0.0)
    write_rows(Path("prompts.jsonl"), [{"prompt": f"{i}?"} for i in range(3)])
    label = ["label", "--query_types", "prompts.jsonl", "--output"]
    costs = []
    for output, who in (("a", ["--model", "model"]), ("b", ["--endpoint", "--model", "m", "--base_url", server.url])):
        main([*label, f"{output}.parquet", *who])
        last = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("labelling: 3 of 3 queries, ")
        ][-1]
        costs.append(int(last.rpartition(" queries/s, ")[2].removesuffix(" tokens").replace(",", "")))
    tokens = LanguageModelLabeler("model")
    list(tokens.label([f"{i}?" for i in range(3)]))
    assert costs[0] == tokens.tokens > 3 * 2 * 50 and costs[1] > 0
    main([*label, "c.parquet"])  # the classifier reads none
    assert "tokens" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--preferences or --query_types: expected rows of one kind"),
        (["--preferences", "a.jsonl", "--query_types", "b.jsonl"], "expected rows of one kind"),
        (["--preferences", "pairs.jsonl"], "--output: expected the name"),
        (["--preferences", "pairs.jsonl", "--output", "a.txt"], "ends in .parquet or .jsonl"),
        (["--preferences", "pairs.jsonl", "--output", "pairs.jsonl"], "--output: that is the file that is read"),
        (["--preferences", "pairs.jsonl", "--output", "a.parquet"], "--model: expected who labels"),
        ([*LABEL[1:], "--threshold", "0.9"], "--threshold: it does nothing beside --preferences"),
        (["--query_types", "p.jsonl", "--output", "a.parquet", "--rationale"], "does nothing beside --query_types"),
        ([*LABEL[1:], "--base_url", "http://x/v1"], "--base_url: it does nothing without --endpoint"),
        ([*LABEL[1:], "--endpoint", "--load_in_8bit"], "--load_in_8bit: it does nothing beside --endpoint"),
        ([*LABEL[1:], "--as_text"], "--as_text without --endpoint"),
        ([*LABEL[1:], "--preamble", "helpfull"], "Did you mean helpfulness?"),
        ([*LABEL[1:], "--examples", "pairs.jsonl"], "no 'better'"),
        ([*LABEL[1:], "--batch_size", "0"], "--batch_size 0: expected"),
        ([*LABEL[1:], "--columns", "prompt=question"], "no 'question' to be `prompt`"),
        ([*LABEL[1:], "--json", "report.txt"], "ends in .json"),
        ([*LABEL[1:], "--load_in_8bit", "--load_in_4bit"], "expected one of them"),
        (["--preferences", "none.jsonl", "--output", "a.parquet", "--model", "model"], "there is no such file"),
    ],
)
def test_what_is_refused(options, message, here, capsys):
    assert message in refused(capsys, "label", *options)


def test_words_of_python_are_flags(here, capsys):
    Path("words.txt").write_text("{prompt} {completion_1}")
    assert "it lacks {completion_2}" in refused(capsys, *LABEL, "--preamble", "words.txt")
    write_rows(Path("pairs.jsonl"), [{"prompt": "q", "answer": "x"}])
    told = refused(capsys, *LABEL)
    assert (
        "Name them by --columns, as completion_1=answer_a" in told and "dataset" not in told.partition("error")[2][:30]
    )
    write_rows(Path("pairs.jsonl"), [{"prompt": "q", "completion_1": "x", "completion_2": ""}])
    assert "PreferenceLabeler" not in refused(capsys, *LABEL)


def test_what_python_is_told_of_queries_without_a_type():
    told = in_words_of("label")(f"label_query_types: 1 of 2 queries got no type. {OTHERS}")
    assert "--model or --endpoint, with the labelled file" in told and "leave them out of the file." in told
    assert "dataset" not in told and "Labeler" not in told and told.startswith("1 of 2 queries")


def test_a_missing_key(here, capsys, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert "Set OPENAI_API_KEY there" in refused(capsys, *LABEL, "--endpoint")
    typed = ["label", "--query_types", "pairs.jsonl", "--output", "typed.parquet", "--endpoint", "--model", "m"]
    assert "--base_url: OpenAI's own server" in refused(capsys, *typed)


def test_what_is_no_address_of_a_server(here, capsys):
    assert "--base_url" in refused(capsys, *LABEL, "--endpoint", "--base_url", "localhost:8000")
