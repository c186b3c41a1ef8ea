"""How fast a run is, and how long it still takes."""

import pytest
from checkpoint_case import KINDS, STEPS, make
from ppo_case import ppo_trainer

from trl_ext.trainer_kit import time_left
from trl_ext.trainer_kit.time_left import TimeLeft, estimate


def test_by_hand():
    told = estimate(10.0, 2, 60, {"generate": 6.0, "score": 1.0, "train": 3.0}, 500.0)
    assert told == "5 s per step, 50 tokens/s; about 5 min left (generate 60%, score 10%, train 30%)"
    assert estimate(1.0, 1, 3, {"train": 1.0}, None) == "1 s per step; about 3 s left"


@pytest.mark.parametrize("kind", KINDS)
def test_each_trainer_says_it_once(kind, tmp_path, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(time_left.tqdm, "write", said.append)
    monkeypatch.setattr(TimeLeft.__init__, "__defaults__", (said.append,))
    trainer = make(kind, tmp_path, logging_steps=1, save_strategy="no")
    known = trainer._steps_to_know()
    trainer.train()
    told = [line for line in said if "per step" in line]
    assert len(told) == int(known < STEPS)
    if kind == "raft":
        assert known == 2 and "generate" in told[0] and "score" in told[0]


def test_after_two_rollouts_of_ppo(tmp_path):
    trainer = ppo_trainer(tmp_path, num_iterations=3, gradient_accumulation_steps=2)
    assert trainer._steps_to_know() == 6
    said = []
    trainer.args.max_steps = 8
    trainer.add_callback(TimeLeft(6, lambda: trainer.memory.seconds, said.append))
    trainer.train()
    assert len(said) == 1 and "tokens/s" in said[0] and "generate" in said[0]
