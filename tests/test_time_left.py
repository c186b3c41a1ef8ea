"""How fast a run is, and how long it still takes."""

import shutil
from types import SimpleNamespace

import pytest
from checkpoint_case import KINDS, STEPS, make
from ppo_case import ppo_trainer

from trl_ext.trainer_kit import time_left
from trl_ext.trainer_kit.time_left import TimeLeft, duration, estimate
from trl_ext.trainer_kit.trl_versions import tokens_read


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


@pytest.mark.parametrize("options", [{"kind": kind} for kind in KINDS] + [{"kind": "raft", "importance_clip": 0.2}])
def test_tokens_per_second_are_said_whatever_is_logged(options, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(TimeLeft.__init__, "__defaults__", (said.append,))

    def run(resume):
        trainer = make(**options, folder=tmp_path, logging_steps=50)
        monkeypatch.setattr(trainer, "_steps_to_know", lambda: 1)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(False)
    for step in (3, 4):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    run(f"{tmp_path}/checkpoint-2")
    assert len(said) == 2 and all("tokens/s" in line for line in said)
    assert tokens_read(whole) > 0


def test_a_resumed_run_counts_its_own_tokens():
    said, state = [], SimpleNamespace(global_step=2, max_steps=9, num_input_tokens_seen=0, is_world_process_zero=True)
    counts = iter([1_000_000.0, 1_000_000.0])
    watch = TimeLeft(1, dict, said.append, tokens=lambda: next(counts))
    watch.on_train_begin(None, state, None)
    state.global_step = 3
    watch.on_step_end(None, state, None)
    assert len(said) == 1 and "tokens/s" not in said[0]


@pytest.mark.parametrize(
    ("hours", "told"),
    [
        (71.6, "3 d 0 h"),
        (95.7, "4 d 0 h"),
        (47.9, "47 h 54 min"),
        (47.999, "2 d 0 h"),
        (1.9999, "2 h 0 min"),
        (59.7 / 3600, "1 min"),
        (59.7 / 60, "1 h 0 min"),
    ],
)
def test_durations_near_a_larger_unit(hours, told):
    assert duration(3600 * hours) == told


def test_durations_never_go_back():
    units = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
    seconds = [1.01**n for n in range(1400)]
    words = [duration(each).split() for each in seconds]
    read = [sum(int(n) * units[unit] for n, unit in zip(word[::2], word[1::2], strict=True)) for word in words]
    assert read == sorted(read)


def test_after_two_rollouts_of_ppo(tmp_path):
    trainer = ppo_trainer(tmp_path, num_iterations=3, gradient_accumulation_steps=2)
    assert trainer._steps_to_know() == 6
    said = []
    trainer.args.max_steps = 8
    trainer.add_callback(TimeLeft(6, lambda: trainer.memory.seconds, said.append))
    trainer.train()
    assert len(said) == 1 and "tokens/s" in said[0] and "generate" in said[0]
