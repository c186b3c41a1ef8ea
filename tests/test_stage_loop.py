"""The loop between SFTTrainer's steps, driven by events alone: no trainer is there."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import TrainerControl, TrainerState

from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.improve_rows import ImproveRows, KeptRows
from trl_ext.self_training.schedule import Schedule
from trl_ext.self_training.stage_loop import StageLoop
from trl_ext.self_training.stage_table import ImproveEntry, StageTable

ARGS = SimpleNamespace(
    keep_best=False,
    improve_patience=1,
    level_stages=0,
    load_best_model_at_end=False,
    output_dir="",
    save_strategy="no",
)


class Steps:
    """A scheduler that counts."""

    count = 0

    def step(self):
        self.count += 1


def loop(*entries: ImproveEntry) -> tuple[StageLoop, list[int]]:
    """Two Improves of five steps, two rows a step; the steps that are passed over are written down."""
    schedule = Schedule(4, 4, 2, 1, steps_per_improve=5, rows_per_step=2, seed=0)
    grower, passed = SimpleNamespace(args=ARGS, schedule=schedule, say=print), []
    rows = ImproveRows(10, {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]})
    return StageLoop(grower, rows, StageTable(list(entries)), print, passed.append, "RAFTTrainer"), passed


def at(step: int) -> tuple[TrainerState, TrainerControl]:
    return TrainerState(global_step=step), TrainerControl()


def test_a_step_costs_three_passes_of_its_tokens():
    one, _ = loop()
    one.on_step_end(ARGS, *at(7), lr_scheduler=Steps())
    assert one.table.cost == 3 * (2 * 3) and one.has_trained  # two rows of three tokens


def test_an_improve_that_no_longer_rises_is_left_at_its_planned_end():
    one, passed = loop(ImproveEntry(0, 0, 0, kept=4, passes=1.0, best_score=1.0, best_step=1))
    (state, control), rates = at(2), Steps()
    one.on_train_begin(ARGS, state, control)
    one.on_evaluate(ARGS, state, control, metrics={"eval_score": 0.5}, model=None, lr_scheduler=rates)
    assert state.global_step == 5 and state.epoch == 1.0 and control.should_epoch_stop
    assert (rates.count, passed, one.table.improves[0].stopped_at) == (3, [3], 2)


def test_an_evaluation_outside_a_run_ends_nothing():
    one, passed = loop(ImproveEntry(0, 0, 0, kept=4, passes=1.0, best_score=1.0, best_step=1))
    state, control = at(2)
    one.on_evaluate(ARGS, state, control, metrics={"eval_score": 0.5}, model=None, lr_scheduler=Steps())
    assert state.global_step == 2 and not control.should_epoch_stop and not passed


def test_a_step_without_rows_moves_nothing_and_leaves_the_improve():
    one, _ = loop()
    one.skipping = True
    model = torch.nn.Linear(1, 1)
    model(torch.ones(1, 1)).backward()
    (state, control), cost = at(6), one.table.cost
    one.on_pre_optimizer_step(ARGS, state, control, model=model)
    one.on_step_end(ARGS, state, control, lr_scheduler=Steps())
    assert model.weight.grad is None and one.table.cost == cost
    assert state.global_step == 10 and not one.skipping


def kept_rows(folder, *, importance: bool, improve: int = 0) -> KeptRows:
    """Of a finished Grow of two pieces, each read as the other was not there."""
    columns = {"prompt_ids": [[5, 6], [8], [9, 9]], "completion_ids": [[7], [4, 1], [2]], "kept": [2, 0, 1]}
    table, files = pa.table(columns | {"log_probs": [[-0.5], [-1.0, -2.0], [-0.25]]}), GrowFiles(folder, 0)
    pq.write_table(table, files.finished, row_group_size=2)
    files.write_kept(improve, importance=importance)
    return KeptRows(files.kept(improve))


def test_what_is_learned_of_what_is_kept(tmp_path):
    one = {"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}
    rows = kept_rows(tmp_path, importance=False)
    assert list(rows) == [one, {"input_ids": [9, 9, 2], "labels": [-100, -100, 2]}]
    assert list(kept_rows(tmp_path, importance=False, improve=1)) == [one]
    assert [row["old_log_probs"] for row in kept_rows(tmp_path, importance=True)] == [[-0.5], [-0.25]]


def test_nothing_kept_is_no_row(tmp_path):
    assert not kept_rows(tmp_path, importance=False, improve=2)


def test_kept_rows_outlive_their_file_and_take_no_memory(tmp_path):
    """They are read through a memory map: not a byte of them is the process's own."""
    before = pa.total_allocated_bytes()
    rows = kept_rows(tmp_path, importance=False)
    assert pa.total_allocated_bytes() == before
    GrowFiles(tmp_path, 0).tidy()
    assert rows[1]["input_ids"] == [9, 9, 2] and not GrowFiles(tmp_path, 0).parts.exists()


def test_a_kept_row_takes_less_than_200_bytes_beside_its_tokens(tmp_path):
    """Of the process's own memory, at most and while an Improve reads them all; its tokens, 512 bytes a row, it maps."""
    count, files = 5_000, GrowFiles(tmp_path, 0)
    ids = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(64 * count) % 50, pa.int32()), 64).cast(
        pa.list_(pa.int32())
    )
    columns = {"prompt_ids": ids, "completion_ids": ids, "kept": pa.array(np.ones(count), pa.int32())}
    pq.write_table(pa.table(columns), files.finished)
    files.write_kept(0, importance=False)
    del ids, columns
    plan = Schedule(count, count, 1, 1, steps_per_improve=1, rows_per_step=count, seed=0)
    buffers, rows = pa.total_allocated_bytes(), ImproveRows(count, {"input_ids": [1], "labels": [1]})
    tracemalloc.start()
    rows.set_rows(KeptRows(files.kept(0)), plan.row_order(0, count))
    assert rows.tokens(range(count)) == 128 * count
    left, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pa.total_allocated_bytes() == buffers
    assert files.kept(0).stat().st_size < (512 + 20) * count
    assert left < 20 * count and most < 200 * count


def test_rows_that_are_over_are_let_go():
    rows = ImproveRows(3, {"input_ids": [1], "labels": [1]})
    rows.set_rows([{"input_ids": [2], "labels": [2]}, {"input_ids": [3], "labels": [3]}], [1, 0, 1])
    assert [row["input_ids"] for row in (rows[place] for place in range(3))] == [[3], [2], [3]]
    rows.release()
    assert rows[2]["input_ids"] == [1] and len(rows) == 3
    with pytest.raises(ValueError, match="expected an order of 3 places, got 1"):
        rows.set_rows([{"input_ids": [2], "labels": [2]}], [0])
