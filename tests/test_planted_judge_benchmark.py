"""The planted judge, its labels, and the benchmark on the smallest world."""

import copy
import json
import math

import pytest
import torch
from tiny import byte_tokenizer, tiny_llama
from transformers import LlamaForCausalLM

from examples.benchmarks.ai_feedback import label_ways, planted_judge, planted_labels, planted_rounds, real_judge
from trl_ext import LikertReward, PreferenceLabeler
from trl_ext.demo import stages
from trl_ext.demo.answers import preference_rows
from trl_ext.demo.world import ASSETS, load_world

TINY = stages.Scale(sft_rows=64, pairs=64, rollouts=2, batch=8, stages=2, stage_batch=8, held_out=16)
PAIRS = preference_rows(load_world(), held_out=True, count=6, seed=0)


@pytest.fixture(scope="module")
def judge():
    """Untrained, with the words of its questions."""
    torch.manual_seed(0)
    tokenizer = planted_judge.judge_tokenizer()
    model = LlamaForCausalLM.from_pretrained(ASSETS / "policy", dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer


def test_the_judge_knows_all_words_of_its_questions(judge):
    _, tokenizer = judge
    texts = [text + answer for text, answer in planted_judge.lessons(PAIRS, seed=0)]
    assert tokenizer.unk_token_id not in {i for text in texts for i in tokenizer(text)["input_ids"]}
    assert [len(tokenizer(f" {grade}")["input_ids"]) for grade in range(1, 11)] == [1] * 10
    own = tokenizer("Mia lives in Oakford.")["input_ids"]
    assert own == planted_judge.PreTrainedTokenizerFast.from_pretrained(ASSETS / "policy")("Mia lives in Oakford.")["input_ids"]  # fmt: skip


def test_lessons_are_what_the_labeler_and_the_reward_ask(judge, monkeypatch):
    model, tokenizer = judge
    shown, _ = label_ways.shown_pairs(PAIRS, seed=0)
    labeler = PreferenceLabeler(model, tokenizer, preamble=planted_labels.PREAMBLE)
    question = planted_labels.PREAMBLE.shown(*(shown[0][name] for name in ("prompt", "completion_1", "completion_2")))
    assert labeler.wording.options(chat=False) == planted_judge.ANSWERS
    assert planted_judge.pair_question(*shown[0].values()) == f"{question}\n\n{planted_judge.ENDING}"
    reward = LikertReward(model, tokenizer=tokenizer, template=planted_judge.GRADE)
    grades = [text for text, answer in planted_judge.lessons(PAIRS, seed=0) if text.endswith("Grade:")]
    asked = planted_judge.GRADE.format(prompt=PAIRS[0]["prompt"], completion="{completion}")
    assert reward._template == planted_judge.GRADE and any(text.startswith(asked.split("{completion}")[0]) for text in grades)  # fmt: skip


@pytest.mark.filterwarnings("ignore:PreferenceLabeler.label. the labeler gives")
def test_a_position_bias_is_so_many_logits(judge):
    """By the head, through the labeler, and as `with_bias` has it of labels without."""
    model, tokenizer = judge
    shown, _ = label_ways.shown_pairs(PAIRS, seed=0)

    def places(bias):
        biased = planted_judge.planted(model, tokenizer, bias=bias)
        labeler = PreferenceLabeler(biased, tokenizer, preamble=planted_labels.PREAMBLE)
        return [judgement.places for judgement in labeler.judge(planted_labels.Dataset.from_list(shown))]

    plain, biased = places(0.0), places(2.0)
    for own, other in zip(plain, biased, strict=True):
        assert other == pytest.approx([label_ways.with_bias(p, 2.0) for p in own], abs=1e-5)
        assert [label_ways.logit(p) for p in other] == pytest.approx([label_ways.logit(p) + 2 for p in own], abs=1e-3)


def test_calibration_by_hand(judge):
    """Margins of ±1 that are right four times in five mean 0.8, which is log 4 logits; a liking of 3 is taken off."""
    fair = torch.tensor([1.0] * 4 + [-1.0])[:, None].expand(5, 2)
    scale, own = planted_judge.calibration(fair + torch.tensor([3.0, -3.0]))
    assert own == pytest.approx(3.0) and scale == pytest.approx(math.log(4), rel=0.1)
    model, tokenizer = copy.deepcopy(judge[0]), judge[1]
    before = planted_judge.margins(planted_judge.planted(model, tokenizer, bias=0.0), tokenizer, PAIRS)
    after = planted_judge.margins(
        planted_judge.planted(model, tokenizer, bias=0.5, scale=2.0, own=0.25), tokenizer, PAIRS
    )
    torch.testing.assert_close(after, 2 * before, atol=1e-4, rtol=1e-4)  # 0.5 − 2 · 0.25 is no bias


def test_labels_by_hand():
    places = [(0.8, 0.4)]  # the first is better by 0.8, and turned around by 1 − 0.4
    assert label_ways.labels(places, 0.0, label_ways.ONE_SOFT) == pytest.approx([0.8])
    assert label_ways.labels(places, 0.0, label_ways.BOTH_SOFT) == pytest.approx([0.7])
    assert label_ways.labels(places, 0.0, label_ways.BOTH_HARD) == [1.0]
    odds = 0.8 / 0.2 * math.exp(2.0)
    assert label_ways.labels(places, 2.0, label_ways.ONE_SOFT) == pytest.approx([odds / (1 + odds)])
    [row] = label_ways.labelled([{"prompt": "p", "completion_1": "a", "completion_2": "b"}], [0.2], soft=True)
    assert row == {"prompt": "p", "chosen": "b", "rejected": "a", "chosen_probability": 0.8}
    assert label_ways.of_labels([0.8, 0.8], [True, False])["agreement"] == 0.5


def test_a_bias_cancels_over_both_orders_of_a_judge_that_is_sure_of_nothing():
    [p] = label_ways.labels([(0.5, 0.5)], 2.0, label_ways.BOTH_SOFT)
    assert p == pytest.approx(0.5)
    assert label_ways.labels([(0.5, 0.5)], 2.0, label_ways.ONE_HARD) == [1.0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:PreferenceLabeler.label. the labeler gives")
def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "FULL", TINY)
    flags = ["--output-dir", str(tmp_path), "--seeds", "0", "--judge-pairs", "64"]
    flags += ["--pairs", "16", "--held-out", "16", "--prompts", "4"]
    for _ in range(2):  # the second time from what was kept
        monkeypatch.setattr("sys.argv", ["planted_labels", *flags])
        planted_labels.main()
    printed = capsys.readouterr().out
    assert printed.count(" CPU seconds; all 1 about") == 1 and printed.count("\nPRIMARY, error 0.3, bias 2") == 2
    assert printed.count("| 0.1 | direct, by grade |") == 2 and "an error of 0.1 was not reached" in printed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:PreferenceLabeler.label. the labeler gives")
def test_a_real_judge_is_measured_and_tuned(tmp_path, monkeypatch, capsys):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tiny_llama(tokenizer, max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"{i}?", "chosen": "good " * (i % 3 + 1), "rejected": "bad"} for i in range(10)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data" / "pairs.jsonl"), "--pairs", "4"]
    monkeypatch.setattr("sys.argv", ["real_judge", *flags, "--tune", "4", "--output-dir", str(tmp_path / "out")])
    real_judge.main()
    printed, told = capsys.readouterr()
    assert "| data, length only | 4 | 1.000 [" in printed
    assert "| data, zero-shot | 4 | " in printed and "| data, tuned on 4 pairs | 4 | " in printed
    assert "| kept |" not in printed and "projected: " in told
    real_judge.main()
    again, told = capsys.readouterr()
    assert again.count("| kept |") == 2 and "projected: " not in told  # of kept answers no time is known


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:PreferenceLabeler.label:UserWarning")
def test_rounds_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "FULL", TINY)
    flags = ["--output-dir", str(tmp_path), "--seeds", "0", "--judge-pairs", "64"]
    flags += ["--pairs", "16", "--prompts", "16", "--held-out", "8"]
    monkeypatch.setattr("sys.argv", ["planted_rounds", *flags])
    planted_rounds.main()
    printed = capsys.readouterr().out
    assert "PRIMARY, two rounds less one: " in printed and "| direct | " in printed
