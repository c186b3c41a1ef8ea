"""examples/train_encoder.py: spans, what is held out, and an encoder that R³ takes."""

import json
import random

import pytest
import torch
import train_encoder

from trl_ext import RelevanceReward


def test_a_span_is_a_tenth_to_a_half_in_order():
    ids, rng = list(range(100)), random.Random(0)
    spans = [train_encoder.span(ids, rng) for _ in range(200)]
    assert all(1 <= len(cut) <= 50 and cut == sorted(cut) and cut[-1] - cut[0] < 50 for cut in spans)
    assert min(map(len, spans)) >= 5 and max(map(len, spans)) >= 40
    assert len({cut[0] for cut in spans}) > 40  # from anywhere
    assert [train_encoder.span([7], rng) for _ in range(20)] == [[7]] * 20  # never nothing
    kept = sum(map(len, spans)) / sum(cut[-1] - cut[0] + 1 for cut in spans)
    assert kept == pytest.approx(0.9, abs=0.03)


def test_what_is_evaluated_on_is_not_learned_from(tmp_path):
    texts, held_out, plain = tmp_path / "texts.jsonl", tmp_path / "held_out.jsonl", tmp_path / "plain.txt"
    rows = [{"query": "why", "reference": "so"}, {"query": "who", "reference": "me"}, {"text": "alone", "id": "x"}]
    texts.write_text("\n".join(map(json.dumps, rows)))
    held_out.write_text(json.dumps({"question": "other", "relevant": "me"}))
    plain.write_text("one\n\ntwo\n\n\n")
    found = train_encoder.documents([texts, plain], train_encoder.FIELDS, [held_out])
    assert found == ["why\nso", "alone", "one", "two"]


def test_the_loss_is_the_cross_entropy_both_ways():
    left, right = torch.randn(4, 3), torch.randn(4, 3)
    one, other = (
        torch.logsumexp(scores, 1) - scores.diag() for scores in (left @ right.T / 0.5, right @ left.T / 0.5)
    )
    found = train_encoder.contrastive_loss(left, right, temperature=0.5)
    torch.testing.assert_close(found, (one.mean() + other.mean()) / 2)


def test_vectors_come_in_the_order_of_their_texts():
    tokenizer = train_encoder.trained_tokenizer(["the sky is blue and the grass is green"] * 3, 60)
    torch.manual_seed(0)
    model = train_encoder.new_encoder(tokenizer, layers=1, width=64, longest=16)
    ids = [[5, 6, 7, 8], [5], [6, 7], [9, 5, 6, 7, 8], [8]]
    alone = torch.cat([train_encoder.vectors(model, [row]) for row in ids])
    torch.testing.assert_close(train_encoder.vectors(model, ids), alone)
    assert alone.norm(dim=1).max() < 1.1 and alone.requires_grad


def test_it_makes_an_encoder_that_rewards_take(tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    words = ["sky", "blue", "grass", "green", "river", "deep", "stone", "grey"]
    rng = random.Random(0)
    rows = [{"text": " ".join(rng.choices(words[:4] if i % 2 else words[4:], k=30))} for i in range(40)]
    texts.write_text("\n".join(map(json.dumps, rows)))
    sizes = ["--layers", "1", "--width", "64", "--batch-size", "8", "--longest", "32", "--minutes", "0.02"]
    train_encoder.main(["--texts", str(texts), "--output-dir", str(tmp_path / "out"), *sizes])
    assert "40 documents" in capsys.readouterr().out
    [score] = RelevanceReward(tmp_path / "out", device="cpu")(prompts=["sky blue"], completions=["the sky is blue"])
    assert score > 0


def test_few_texts_are_refused(tmp_path):
    (tmp_path / "few.txt").write_text("one\n\ntwo")
    with pytest.raises(ValueError, match=r"--texts: expected at least 128 documents .* got 2"):
        train_encoder.main(["--texts", str(tmp_path / "few.txt"), "--output-dir", str(tmp_path / "out")])
