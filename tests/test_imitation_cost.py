"""examples/benchmarks/speed/imitation_cost.py: its rows take the same step but for the term, and FLOPs are counted right."""

import pytest
import torch

from examples.benchmarks.speed import imitation_cost
from examples.benchmarks.speed.imitation_cost import OURS, PLAIN, WITHOUT, Work


@pytest.fixture
def trainer(tmp_path):
    return imitation_cost.trainer_of(40, str(tmp_path), Work(hidden=16, layers=2, pairs=2, prompt=5, completion=3))


def test_rows_differ_in_the_term_only(trainer):
    batch = trainer.data_collator(list(trainer.train_dataset))
    losses = {}
    for row in (WITHOUT, OURS, PLAIN):
        with imitation_cost.kind_of_step(trainer, batch, row) as inputs, torch.no_grad():
            losses[row] = trainer.compute_loss(trainer.model, inputs).item()
    nll = torch.tensor(40.0).log().item()  # about: the weights are small
    assert losses[OURS] == pytest.approx(losses[PLAIN], rel=1e-6)
    assert losses[OURS] - losses[WITHOUT] == pytest.approx(0.1 * nll, rel=0.05)


def test_flops_by_hand(trainer):
    # a layer: 4 · 16 · 16 of attention, 3 · 16 · 64 of the MLP, two norms of 16 = 4128; a head of 40 · 16 = 640
    # 1 + 4 · 640 · 3 labels / (6 · 2 · 4128 · 2 · 8 tokens)
    assert imitation_cost.flops_ratio(trainer) == pytest.approx(1 + 4 * 640 * 3 / (6 * 2 * 4128 * 16))


def test_ratio_is_taken_turn_by_turn():
    assert imitation_cost.ratio([2.0, 30.0, 6.0], [1.0, 10.0, 6.0]) == "2.00"  # of 2, 3 and 1


def test_all_rows_are_measured(trainer):
    seconds, peaks = imitation_cost.measured(trainer, repeats=2)
    assert all(len(seconds[row]) == 2 and peaks[row] > 0 for row in (WITHOUT, OURS, PLAIN))
