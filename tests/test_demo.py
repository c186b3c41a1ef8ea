"""The demo's chain at the smallest scale, and what it measures."""

import json

import pytest
import torch

from trl_ext.cli import main
from trl_ext.demo import evaluation, stages
from trl_ext.demo.answers import sample_questions
from trl_ext.demo.world import ASSETS, load_world

TINY = stages.Scale(sft_rows=64, pairs=64, rollouts=2, batch=8, stages=2, stage_batch=8, held_out=16)


@pytest.mark.slow
def test_the_chain_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "QUICK", TINY)
    monkeypatch.chdir(tmp_path)
    main(["demo", "--quick", "--output-dir", "out", "--seed", "3"])
    printed = capsys.readouterr().out
    for text in (
        "SFT:",
        "reward model:",
        "PPO, R³",
        "RAFT, R³",
        "ReST, R³",
        "Held-out questions",
        "before",
        "control",
        "curves.png",
    ):
        assert text in printed
    assert "{'loss'" not in printed  # one line per stage, not Trainer's logs
    out = tmp_path / "out"
    measures = json.loads((out / "measures.json").read_text())
    assert set(measures) == {"before", "PPO", "RAFT", "ReST", "control"}
    assert (
        measures["before"]["KL to SFT per answer (nats)"] == 0.0 < abs(measures["PPO"]["KL to SFT per answer (nats)"])
    )
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len((out / "answers.jsonl").read_text().splitlines()) == TINY.held_out
    for folder in ("sft", "reward", "reward_without_imitation", "ppo", "raft", "rest", "control"):
        assert (out / folder / "model.safetensors").is_file()


def test_kl_of_a_policy_to_itself_is_0():
    questions = sample_questions(load_world(), held_out=True, count=6, seed=0)
    answers = evaluation.sample_answers(ASSETS / "policy", ASSETS / "policy", questions, seed=0)
    assert answers.kl == 0.0 and len(answers.texts) == len(answers.ended) == 6


def test_log_probs_stop_at_the_end_token(policy, tokenizer):
    eos = tokenizer.eos_token_id
    ids = torch.tensor([[5, 6, 7, eos, 8], [5, 6, 7, 8, 9]])
    prompts = {"input_ids": ids[:, :2], "attention_mask": torch.ones(2, 2, dtype=torch.long)}
    log_probs = evaluation._log_probs(policy, ids, prompts)
    full = policy(ids).logits.log_softmax(-1)
    first = full[0, 1, 7] + full[0, 2, eos]  # what stands after the end is not the answer's
    second = full[1, 1, 7] + full[1, 2, 8] + full[1, 3, 9]
    torch.testing.assert_close(log_probs, torch.stack([first, second]))


def test_closed_right_grades_closed_questions_only():
    scores = stages.closed_right(
        completions=[" Mia's cat is black.", " Mia's cat is white.", " Mia has a cat."],
        attribute=["pet.color", "pet.color", None],
        answer=["black", "black", None],
    )
    assert scores == [1.0, 0.0, None]


def test_control_ignores_what_was_asked():
    completions, columns = ["a b c d"] * 2, {"prompts": ["x", "y"], "query_type": ["open", "closed"]}
    assert stages.control()(completions=completions, **columns) == [0.04, 0.04]


def test_curves_are_drawn_only_with_matplotlib(tmp_path, monkeypatch):
    from trl_ext.demo import report

    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert report.draw_curves(tmp_path / "curves.png", {}) is None
