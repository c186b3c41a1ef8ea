import pytest

from trl_ext.self_training.schedule import Schedule, per_improve, steps_per_improve


def plan(**changes) -> Schedule:
    settings = {
        "prompts": 10,
        "stage_batch_size": 4,
        "num_stages": 5,
        "improves_per_stage": 3,
        "steps_per_improve": 6,
        "rows_per_step": 2,
        "seed": 0,
    }
    return Schedule(**settings | changes)


def test_a_step_belongs_to_one_improve():
    # 6 steps per Improve, 3 Improves per stage: step 17 is the last of Improve 2, the third of stage 0
    assert [plan().place(step) for step in (0, 5, 6, 17, 18)] == [(0, 0), (0, 0), (1, 1), (2, 2), (3, 0)]


def test_stages_take_every_prompt_before_any_comes_again():
    schedule = plan(stage_batch_size=5)
    stages = [schedule.stage_rows(stage).tolist() for stage in range(3)]
    assert sorted(stages[0] + stages[1]) == list(range(10))
    assert stages[0] == plan(stage_batch_size=5).stage_rows(0).tolist() != stages[2]


def test_a_stage_over_all_prompts_reads_them_in_their_order():
    assert plan(stage_batch_size=10).stage_rows(3).tolist() == list(range(10))


def test_no_prompt_comes_twice_in_a_stage():
    schedule = plan(prompts=5, stage_batch_size=4)
    for stage in range(10):
        rows = schedule.stage_rows(stage).tolist()
        assert len(set(rows)) == len(rows) <= 4


@pytest.mark.parametrize("kept", [1, 5, 12, 30])
def test_an_improve_reads_each_row_before_any_comes_again(kept):
    order = plan().row_order(7, kept).tolist()
    assert len(order) == 12  # 6 steps of 2 rows, however many were kept
    counts = [order.count(row) for row in range(kept)]
    assert max(counts) - min(counts) <= 1
    assert order == plan().row_order(7, kept).tolist()
    if kept > 1:
        assert order != plan().row_order(8, kept).tolist()


def test_steps_cover_the_passes():
    assert steps_per_improve(2048, epochs=2, rows_per_step=64) == 64
    assert steps_per_improve(10, epochs=1, rows_per_step=4) == 3  # the last step is filled up
    assert steps_per_improve(1, epochs=0.1, rows_per_step=64) == 1


def test_learning_rate_falls_within_each_improve_and_from_one_to_the_next():
    rate = per_improve(lambda step: 1 - step / 6, plan(), factor=0.5)
    assert [rate(step) for step in (0, 3, 6, 9, 12, 18)] == [
        1.0,
        0.5,
        0.5,
        0.25,
        0.25,
        1.0,
    ]  # a new stage: from the top
