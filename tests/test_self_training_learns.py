"""Do they learn? A few stages must raise the score of what is sampled, and the random control must not."""

import pytest
from self_training_case import logged, trainer

from trl_ext import RAFTTrainer, ReSTTrainer

PROMPTS = [f"question {i}?" for i in range(32)]
SETTINGS = {
    "prompts": PROMPTS,
    "num_stages": 6,
    "num_generations": 8,
    "max_completion_length": 6,
    "prompts_per_part": 32,
    "per_device_train_batch_size": 8,
    "improve_epochs": 3,
    "learning_rate": 1e-2,
    "level_stages": 0,
}


def rise(folder, cls=RAFTTrainer, **changes) -> float:
    """How much the mean score of a stage's samples has risen from the first stage to the last."""
    one = trainer(folder, cls, **SETTINGS | changes)
    one.train()
    scores = logged(one, "grow/score")
    return scores[-1] - scores[0]


@pytest.mark.parametrize("selection", ["local", "global"])
def test_raft_learns(tmp_path, selection):
    assert rise(tmp_path, selection=selection) > 0.3


def test_raft_plus_plus_learns(tmp_path):
    assert rise(tmp_path, importance_clip=0.2) > 0.3


def test_rest_learns(tmp_path):
    settings = {"thresholds": [0.5, 0.7], "score_map": "grow", "mix_dataset": False}
    assert rise(tmp_path, ReSTTrainer, num_stages=5, **settings) > 0.3


def test_rest_em_learns_though_it_begins_anew_each_time(tmp_path):
    settings = {"thresholds": [0.6], "score_map": "grow", "restart_from_base": True, "temperature": 1.0, "top_k": 0}
    assert rise(tmp_path, ReSTTrainer, num_stages=4, improve_epochs=8, **settings) > 0.2


def test_random_samples_of_the_same_number_teach_nothing(tmp_path):
    """The control: fine-tuning on one's own samples does not raise the score, selecting them does."""
    assert abs(rise(tmp_path, random_selection=True)) < 0.15
