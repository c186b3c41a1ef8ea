"""Labels by a model behind a real HTTP server, and what becomes of the server's faults."""

import logging
import math

import pytest
import torch
from ai_feedback_case import PREAMBLE, pairs
from log_prob_server import LogProbServer, half, without_log_probs
from option_case import byte_level_tokenizer, sentence_piece_tokenizer
from tiny import byte_tokenizer, tiny_llama

from trl_ext import EndpointLogProbs, PreferenceLabeler
from trl_ext.generation.endpoint_generator import EndpointError
from trl_ext.generation.listed_tokens import Place, option_bounds
from trl_ext.sequences.option_log_probs import option_log_probs

KEY = "sk-a-secret-of-mine"
pytestmark = pytest.mark.filterwarnings("ignore:.*of its probability to the answers")


def model_of(tokenizer):
    """Random, with the two answers and the blank among its likeliest tokens."""
    model = tiny_llama(tokenizer, max_position_embeddings=512)
    words = [token for token in ("1", "2", "Ġ", "▁", "▁1", "▁2") if token in tokenizer.get_vocab()]
    likely = torch.tensor(tokenizer.convert_tokens_to_ids(words))

    def sure(module, args, logits):
        return logits.index_add(-1, likely, torch.full((*logits.shape[:-1], len(words)), 9.0))

    model.lm_head.register_forward_hook(sure)
    return model


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    tokenizer = byte_tokenizer()
    server = LogProbServer(model_of(tokenizer), tokenizer)
    yield server
    server.close()


def labeler(server, *, labels=(), **options) -> PreferenceLabeler:
    endpoint = EndpointLogProbs("m", server.url, **{"max_retries": 2, "timeout": 20.0} | options)
    return PreferenceLabeler(endpoint, preamble=PREAMBLE, **dict(labels))


def test_a_chat_is_labelled_as_by_the_model_itself(server, tmp_path):
    """The model writes "1" or "2" as one token, or a blank before it; those listed are all that there are of it."""
    found = labeler(server, listed=259).judge(pairs(3), keep=tmp_path / "kept.jsonl")
    tokenizer = server.tokenizer
    for row, judgement in zip(pairs(3), found, strict=True):
        texts = row["completion_1"], row["completion_2"]
        for place, (first, second) in zip(judgement.places, (texts, texts[::-1]), strict=True):
            asked = [{"role": "user", "content": f"Judge.\n\nP {row['prompt']}\n1 {first}\n2 {second}\n\nBetter:"}]
            [log_probs] = option_log_probs(server.model, tokenizer, [asked], ["1", "2", " 1", " 2"]).tolist()
            blank = option_log_probs(server.model, tokenizer, [asked], [" ", "x"])[0, 0].item()
            likeliest = max(*log_probs[:2], blank)
            sums = [math.exp(value) for value in log_probs]
            one, two = (sums[0] + sums[2], sums[1] + sums[3]) if likeliest == blank else sums[:2]
            assert place == pytest.approx(one / (one + two), abs=1e-4)
    paths = {path for path, *_ in server.requests}
    assert paths == {"/v1/chat/completions"} and server.requests[0][1]["top_logprobs"] == 259
    assert server.requests[0][2] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level_tokenizer(("Ġ", "1"), ("Ġ", "2")),
        byte_level_tokenizer(),
        sentence_piece_tokenizer("▁1", "▁2"),
        sentence_piece_tokenizer(),
    ],
    ids=["bytes merged", "bytes split", "pieces merged", "pieces split"],
)
def test_text_is_gone_on_from_whatever_the_tokenizer(tokenizer, tmp_path, monkeypatch):
    """A blank of its own before the answer is read over; the mass on the answers is found."""
    server = LogProbServer(model_of(tokenizer), tokenizer)
    try:
        asked = labeler(server, chat=False)
        labels = asked.label(pairs(2), keep=tmp_path / "kept.jsonl")
    finally:
        server.close()
    assert {path for path, *_ in server.requests} == {"/v1/completions"} and server.requests[0][1]["logprobs"] == 5
    assert len(labels) == 2 and asked.report.mass > 0.2


def test_what_is_listed_by_hand():
    log = math.log
    one_place = [Place("1", {"1": log(0.5), " 1": log(0.1), "2": log(0.2), "A": log(0.1)})]
    assert option_bounds(one_place, ["1", "2"]) == pytest.approx([log(0.6), log(0.2)])
    blank_first = [Place("▁", {"▁": log(0.8), "▁1": log(0.1)}), Place("2", {"2": log(0.75), "1": log(0.25)})]
    assert option_bounds(blank_first, ["1", "2"]) == pytest.approx([log(0.1 + 0.8 * 0.25), log(0.6)])
    # "2" is not listed: at most what the least listed has, .1, and what all leave, .05
    assert option_bounds([Place("1", {"1": log(0.85), "A": log(0.1)})], ["1", "2"])[1] == pytest.approx(log(0.05))
    assert option_bounds([Place("1", {"1": log(0.5), "A": log(0.1)})], ["1", "2"])[1] == pytest.approx(log(0.1))
    assert len(set(option_bounds([Place("A", {"A": log(0.9)})], ["1", "2"]))) == 1  # neither: no preference


def test_reasons_are_written_by_the_server(server, tmp_path):
    asked = labeler(server, labels={"rationale": True, "max_rationale_length": 4})
    asked.label(pairs(1), keep=tmp_path / "kept.jsonl")
    bodies = [body for _, body, _ in server.requests]
    assert [body["max_tokens"] for body in bodies] == [4, 2, 4, 2]
    assert [len(body["messages"]) for body in bodies] == [1, 3, 1, 3] and "logprobs" not in bodies[0]
    assert asked.report.tokens == sum(len(server.ids(body)) + body["max_tokens"] for body in bodies)


def test_so_many_at_a_time_and_what_it_costs(server, tmp_path):
    server.wait = 0.05
    asked = labeler(server, concurrency=3)
    asked.label(pairs(8), keep=tmp_path / "kept.jsonl")
    assert server.most_busy == 3 and len(server.requests) == 16
    assert asked.report.tokens == sum(len(server.ids(body)) + 2 for _, body, _ in server.requests)


@pytest.mark.parametrize(
    "fault", [429, 500, "cut", half, "slow", lambda answer: "<html>", lambda answer: {"error": "x"}]
)
def test_a_fault_that_passes_is_asked_again(fault, server, tmp_path):
    """The same labels as without."""
    expected = labeler(server).judge(pairs(2), keep=tmp_path / "plain.jsonl")
    server.faults = [fault]
    found = labeler(server, concurrency=1, timeout=0.5 if fault == "slow" else 20.0)
    assert found.judge(pairs(2), keep=tmp_path / "kept.jsonl") == expected
    assert not server.faults


@pytest.mark.parametrize(
    "fault, said",
    [
        (429, r"it refused \(.*not now"),
        (500, r"it refused \(.*not now"),
        ("cut", "it could not be asked"),
        (half, "its answer cannot be read, 2 times in a row, the last one was '{"),
        (lambda answer: answer | {"choices": []}, "its answer cannot be read"),
        ("slow", "it did not answer within 0.2 s"),
        (
            without_log_probs,
            r"it gives no log-probabilities, of which labels are made; .* Ask a model and server that give",
        ),
    ],
)
def test_a_fault_that_stays_is_an_error_without_the_key(fault, said, server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    keep = tmp_path / "kept.jsonl"
    asked = labeler(server, concurrency=1, max_retries=1, timeout=0.2 if fault == "slow" else 20.0)
    asked.label(pairs(1), keep=keep)
    kept, server.always = keep.read_text(), fault
    with pytest.raises(EndpointError, match=said) as raised:
        asked.label(pairs(3), keep=keep)
    assert KEY not in str(raised.value) + caplog.text + keep.read_text()
    assert raised.value.__cause__ is None or KEY not in repr(raised.value.__cause__)
    assert keep.read_text() == kept  # what was labelled stays
    server.always, before = None, len(server.requests)
    server.slow.set()
    labels = asked.label(pairs(3), keep=keep)
    assert len(labels) == 3 and len(server.requests) == before + 4  # both orders of the two that were missing


def test_a_row_that_the_server_refuses_is_named(server, tmp_path):
    rows = pairs(3).to_list()
    rows[1]["prompt"] = "long " * 200
    keep = tmp_path / "kept.jsonl"
    server.limit = 900  # characters
    with pytest.raises(EndpointError) as caught:
        labeler(server).label(rows, keep=keep)
    said = str(caught.value)
    assert said.startswith("PreferenceLabeler.label: row 1, of 1,000 characters of prompt")
    assert "maximum context length" in said and "shorten or drop that row" in said and KEY not in said
    labels = labeler(server).label([rows[0], rows[2]], keep=keep)
    assert len(labels) == 2


@pytest.mark.parametrize("status", [401, 404, 500])
def test_what_is_no_rows_fault_names_none(status, server, tmp_path):
    server.always = status
    with pytest.raises(EndpointError) as caught:
        labeler(server, max_retries=0).label(pairs(1), keep=tmp_path / "kept.jsonl")
    assert "row" not in str(caught.value).split("Where a run")[0]


def test_what_was_asked_meanwhile_is_kept(server, tmp_path):
    keep = tmp_path / "kept.jsonl"
    server.wait, server.faults = 0.05, [without_log_probs]
    with pytest.raises(EndpointError, match="no log-probabilities"):
        labeler(server, concurrency=4).label(pairs(12), keep=keep)
    assert 1 <= keep.read_text().count("\n") < 12


def test_log_probabilities_that_are_none(server, tmp_path):
    def nan(answer):
        answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] = float("nan")
        return answer

    server.always = nan
    with pytest.raises(EndpointError, match="its answer cannot be read"):
        labeler(server, max_retries=0).label(pairs(1), keep=tmp_path / "kept.jsonl")


def test_a_key_that_is_missing(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"EndpointLogProbs\(base_url=None\): .*Set OPENAI_API_KEY there"):
        EndpointLogProbs("m")


def test_what_is_refused(server):
    endpoint = EndpointLogProbs("m", server.url)
    with pytest.raises(ValueError, match=r"the labels of endpoint:m at .* would be lost with an error"):
        PreferenceLabeler(endpoint).label(pairs(1))
    with pytest.raises(ValueError, match="the server has its own"):
        PreferenceLabeler(endpoint, byte_tokenizer())
    with pytest.raises(ValueError, match=r"EndpointLogProbs\(listed=1\)"):
        EndpointLogProbs("m", server.url, listed=1)
    with pytest.raises(ValueError, match=r"EndpointLogProbs\(concurrency=0\)"):
        EndpointLogProbs("m", server.url, concurrency=0)
