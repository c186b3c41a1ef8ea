"""How the benchmark tunes a real judge, counts what it is right about, and goes on after a stop."""

import argparse
import json
import math

import pytest
import torch
from tiny import byte_tokenizer, tiny_llama

from examples.benchmarks.ai_feedback import real_judge
from trl_ext import PreferenceLabeler

PAIRS = [{"prompt": f"{i}?", "chosen": "good " * (i % 3 + 1), "rejected": "bad"} for i in range(8)]


@pytest.fixture
def judge():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    return tiny_llama(tokenizer, max_position_embeddings=2048), tokenizer


def test_lessons_end_with_the_answer_that_is_right(judge):
    model, tokenizer = judge
    found = real_judge.lessons(PAIRS, PreferenceLabeler(model, tokenizer), tokenizer, seed=0)
    answers = set()
    for (context, answer), pair in zip(found, PAIRS, strict=True):
        text, said = tokenizer.decode(context), tokenizer.decode(answer)
        first = text.index("Response 1:\n" + pair["chosen"]) if f"Response 1:\n{pair['chosen']}" in text else None
        assert said.strip() == ("2" if first is None else "1")
        answers.add(said)
    assert len(answers) == 2


def test_the_loss_is_of_the_answer_alone(judge):
    model, _ = judge
    ids = torch.tensor([[5, 6, 7, 8]])
    log_probs = model(ids).logits.log_softmax(-1)[0]
    by_hand = -(log_probs[1, 7] + log_probs[2, 8]) / 2
    assert real_judge.answer_loss(model, [5, 6], (7, 8)).item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_tuning_teaches_the_lessons(judge):
    model, _ = judge
    taught = [([5, 6, 7], (8,)), ([7, 6, 5], (9,))] * 40
    before = sum(real_judge.answer_loss(model, *each).item() for each in taught[:2])
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    learned = real_judge.tuned(model, taught, learning_rate=2e-2, seed=0)
    assert sum(real_judge.answer_loss(learned, *each).item() for each in taught[:2]) < before - 1
    left = {name.replace(".base_layer", ""): weight for name, weight in model.named_parameters() if "lora" not in name}
    assert all(torch.equal(weights[name], left[name]) for name in weights)


def test_no_prompt_is_both_asked_and_taught(tmp_path):
    rows = [pair | {"chosen": pair["chosen"] + mark} for pair in PAIRS for mark in "ab"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = argparse.Namespace(data=[tmp_path / "pairs.jsonl"], pairs=6, tune=4, longest=100, seed=0)
    asked, taught = real_judge.split(args)
    [asked] = asked.values()
    assert (len(asked), len(taught)) == (6, 4)
    assert not {row["prompt"] for row in asked} & {row["prompt"] for row in taught}


def test_what_all_takes_follows_from_the_first_file():
    asked = {"a": [{}] * 10, "b": [{}] * 20}
    assert real_judge.projected(60.0, asked, 0) == pytest.approx(3.0)  # 6 s a pair
    assert real_judge.projected(60.0, asked, 20) == pytest.approx(6.0 + 3.0)  # a lesson: half a pair, thrice


@pytest.mark.filterwarnings("ignore:PreferenceLabeler.label. the labeler gives")
def test_a_run_goes_on_and_refuses_other_settings(judge, tmp_path, monkeypatch, capsys):
    model, tokenizer = judge
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    flags = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data" / "pairs.jsonl"), "--pairs", "4"]
    flags += ["--tune", "4", "--output-dir", str(tmp_path / "out")]

    def printed(*more):
        monkeypatch.setattr("sys.argv", ["real_judge", *flags, *more])
        real_judge.main()
        said = capsys.readouterr().out
        assert "PRIMARY, tuned, pairs of all files: " in said and "less length only: " in said
        return [line.rsplit("|", 2)[0] for line in said.splitlines()]  # without the seconds

    first = printed()
    monkeypatch.setattr(real_judge, "tuned", None)
    assert printed() == first
    rows = [line for line in first if line.startswith("| data")]
    assert len(rows) == 3 and math.isclose(float(rows[0].split("|")[3].split()[0]), 1.0)
    with pytest.raises(ValueError, match="real_judge"):
        printed("--seed", "1")
