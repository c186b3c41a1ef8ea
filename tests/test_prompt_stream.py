"""RAFT and ReST on a stream: b prompts a stage as they come, the very same where a killed run goes on."""

import re
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from self_training_case import PROMPTS, even_letters, trainer
from two_processes import run_in_two

from trl_ext import ReSTTrainer, RewardDiagnostics, diagnose
from trl_ext.self_training.prompt_stream import Position, PromptStream

MANY = [f"{prompt} {i}" for i in range(5) for prompt in PROMPTS]


def stream_of(prompts=MANY, **columns) -> IterableDataset:
    return Dataset.from_dict({"prompt": prompts} | columns).to_iterable_dataset()


def numbers(count: int) -> PromptStream:
    return PromptStream(IterableDataset.from_generator(lambda: ({"n": n} for n in range(count))), call="RAFT(…)")


def taken(stream: PromptStream, count: int) -> list[int]:
    return [row["n"] for row in stream.take(count)]


def asked(folder: Path, stage: int) -> list[str]:
    table = pq.read_table(folder / f"grow-{stage:03d}.parquet")
    return table.filter(pc.equal(table["sample"], 0))["prompt"].to_pylist()


# A stream by itself


def test_it_is_read_on_and_anew_from_its_beginning():
    stream = numbers(5)
    assert [row["n"] for row in stream.first(3)] == [0, 1, 2]  # looked at, and still to come
    assert taken(stream, 2) == [0, 1] and taken(stream, 2) == [2, 3]
    with pytest.warns(UserWarning, match="ended after 5 prompts and is read anew, pass 2"):
        assert taken(stream, 2) == [4, 0]
    assert (stream.position.epoch, stream.position.taken) == (1, 1)


def test_a_stream_that_can_be_read_once_loses_nothing_where_it_is_looked_at():
    rows = iter([{"n": n} for n in range(4)])
    stream = PromptStream(IterableDataset.from_generator(lambda: rows), call="RAFT(…)")
    stream.first(2)
    assert taken(stream, 4) == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:.*is read anew")
def test_a_position_is_found_again_behind_a_shuffling_buffer():
    """`load_state_dict` loses what is in the buffer."""

    def shuffled() -> PromptStream:
        rows = IterableDataset.from_generator(lambda: ({"n": n} for n in range(20)))
        return PromptStream(rows.shuffle(seed=3, buffer_size=6), call="RAFT(…)")

    whole, positions, stages = shuffled(), [Position()], []
    for _ in range(6):
        stages.append(taken(whole, 7))
        positions.append(whole.position)
    passes = [n for stage in stages for n in stage]
    assert sorted(passes[:20]) == sorted(passes[20:40]) == list(range(20)) and passes[:20] != passes[20:40]
    for position, stage in zip(positions, stages, strict=False):
        again = shuffled()
        again.seek(position)
        assert taken(again, 7) == stage


@pytest.mark.filterwarnings("ignore:.*is read anew")
def test_a_stream_that_another_trainer_has_read_begins_at_its_beginning():
    """As in a notebook, whose trainer is made anew after it was stopped."""
    rows = IterableDataset.from_generator(lambda: ({"n": n} for n in range(20))).shuffle(seed=3, buffer_size=6)
    first = PromptStream(rows, call="RAFT(…)")
    stages = [taken(first, 8) for _ in range(5)]
    again = PromptStream(rows, call="RAFT(…)")
    assert [taken(again, 8) for _ in range(5)] == stages


def test_a_stream_with_fewer_rows_than_a_stage():
    with pytest.raises(
        ValueError, match=r"RAFT\(…\): the stream ended after 3 prompts, and stage_batch_size=4. Lower"
    ):
        numbers(3).take(4)


def test_a_stream_that_comes_in_another_order():
    stream = numbers(5)
    stream.take(3)
    other = PromptStream(IterableDataset.from_generator(lambda: ({"n": -n} for n in range(5))), call="RAFT(…)")
    with pytest.raises(
        ValueError, match="the first 3 prompts of the stream are not those that the run has had before"
    ):
        other.seek(stream.position)


# A run


def test_stages_take_prompts_as_they_come(tmp_path):
    trainer(tmp_path, train_dataset=stream_of(), stage_batch_size=6, num_stages=3, improve_steps=1).train()
    assert [asked(tmp_path, stage) for stage in range(3)] == [MANY[:6], MANY[6:12], MANY[12:18]]


def test_a_stage_over_all_of_it_is_a_stage_over_the_data_set(tmp_path):
    """What learns from them does not know where prompts come from."""
    options = {"stage_batch_size": len(PROMPTS), "num_stages": 1, "improve_steps": 2}
    models = []
    for name, rows in (("set", Dataset.from_dict({"prompt": PROMPTS})), ("stream", stream_of(PROMPTS))):
        one = trainer(tmp_path / name, train_dataset=rows, **options)
        one.train()
        models.append(one.model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


class Away(RuntimeError):
    pass


def test_a_run_that_was_stopped_goes_on_with_the_prompts_it_would_have_seen(tmp_path):
    """It stops inside the second stage, with a part scored, and once more before the third: the files are the same."""
    settings = {"stage_batch_size": 6, "num_stages": 4, "improve_steps": 2, "save_strategy": "steps", "save_steps": 2}
    seen = []

    def failing(prompts, completions, **columns):
        seen.append(prompts)
        if len(seen) in (4, 6):  # of 2 parts a stage
            raise Away
        return even_letters(completions)

    def one(folder, reward):
        rows = stream_of().shuffle(seed=1, buffer_size=10)
        return trainer(folder, train_dataset=rows, reward_funcs=reward, **settings)

    def scored_even(prompts, completions, **columns):
        return even_letters(completions)

    failing.__name__ = scored_even.__name__ = "scored"
    whole = one(tmp_path / "whole", scored_even)
    whole.train()
    for _ in range(2):
        with pytest.raises(Away):
            one(tmp_path / "stopped", failing).train(resume_from_checkpoint=True)
    resumed = one(tmp_path / "stopped", failing)
    resumed.train(resume_from_checkpoint=True)
    for stage in range(4):
        assert asked(tmp_path / "whole", stage) == asked(tmp_path / "stopped", stage)
    ours, theirs = (each.model.state_dict() for each in (whole, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_columns_reach_rewards_and_answers_are_mixed_in(tmp_path):
    lengths = list(range(len(MANY)))
    answers = [f" {n}" for n in lengths]

    def told(prompts, completions, length, **columns):
        assert [MANY[n] for n in length] == prompts
        return even_letters(completions)

    rows = stream_of(length=lengths, completion=answers)
    one = trainer(
        tmp_path,
        ReSTTrainer,
        train_dataset=rows,
        reward_funcs=told,
        stage_batch_size=4,
        thresholds=[0.0],
        improve_steps=1,
    )
    one.train()
    table = pq.read_table(tmp_path / "grow-001.parquet")
    own = table.filter(pc.equal(table["sample"], -1))
    assert own["completion"].to_pylist() == answers[4:8] and own["prompt"].to_pylist() == MANY[4:8]
    assert one.grower.stage_rows(1).dataset["length"][:] == lengths[4:8]


def test_a_grow_of_a_stream_is_diagnosed_with_the_columns_of_its_stage(tmp_path):
    def short(prompts, completions, most, **columns):
        assert [int(prompt.split()[-1]) for prompt in prompts] == most
        return [float(len(text) < n) for text, n in zip(completions, most, strict=True)]

    rows = stream_of(most=[int(prompt.split()[-1]) for prompt in MANY])
    one = trainer(tmp_path, train_dataset=rows, stage_batch_size=8, improve_steps=1)
    callback = RewardDiagnostics(one, gold=short, show=False)
    one.add_callback(callback)
    one.train()
    assert len(callback.diagnosis.history) == 2
    asked_last = Dataset.from_parquet(str(tmp_path / "prompts-001.parquet"), cache_dir=str(tmp_path / "cache"))
    again = diagnose([tmp_path / "grow-001.parquet"], reward=even_letters, gold=short, dataset=asked_last)
    assert again.last.gold == pytest.approx(callback.diagnosis.last.gold)


# What is refused


@pytest.mark.parametrize(
    ("rows", "size", "message"),
    [
        (stream_of(), None, "is a stream, with stage_batch_size=None: where it ends is not known"),
        (split_dataset_by_node(stream_of(), 0, 2), 4, "is a process's part of a stream: expected the whole"),
        (stream_of().filter(lambda row: False), 4, "is empty: expected at least one prompt"),
        (stream_of(["a", "  "]), 2, "prompt of row 1"),
        (stream_of().rename_column("prompt", "question"), 4, "expected a column `prompt`"),
    ],
)
def test_streams_that_are_refused(tmp_path, rows, size, message):
    with pytest.raises(ValueError, match=rf"RAFTTrainer\(train_dataset=…\).*{message}"):
        trainer(tmp_path, train_dataset=rows, stage_batch_size=size)


@pytest.mark.parametrize("bad", ["", "x" * 300, 7])
def test_a_bad_prompt_that_comes_later_is_refused_before_it_is_sampled(tmp_path, bad):
    prompts = [*MANY, bad]
    rows = IterableDataset.from_generator(lambda: ({"prompt": prompt} for prompt in prompts))
    one = trainer(tmp_path, train_dataset=rows, stage_batch_size=len(MANY), improve_steps=1)
    with (
        pytest.warns(UserWarning, match="is read anew"),
        pytest.raises(
            ValueError, match=rf"RAFTTrainer\(train_dataset=…\).*row 0.*Row 0 is row {len(MANY)} of the stream"
        ),
    ):
        one.train()
    assert not (tmp_path / "prompts-001.parquet").exists() and (tmp_path / "grow-000.parquet").exists()


class Known:
    """A reward that reads a column, of which it knows one value."""

    __name__ = "known"

    def check_columns(self, columns, rows):
        if any(columns["kind"][row] != "open" for row in rows):
            raise ValueError("expected 'open' in the column `kind`")

    def __call__(self, completions, kind, **columns):
        return even_letters(completions)


def test_columns_are_looked_at_when_they_come(tmp_path):
    rows = stream_of(kind=["open"] * 39 + ["shut"])
    one = trainer(tmp_path, train_dataset=rows, reward_funcs=Known(), stage_batch_size=38, improve_steps=1)
    with (
        pytest.warns(UserWarning, match="is read anew"),
        pytest.raises(ValueError, match="expected 'open' in the column `kind` Row 0 is row 38 of the stream"),
    ):
        one.train()
    assert not (tmp_path / "prompts-001.parquet").exists()


def test_a_run_without_its_prompts(tmp_path):
    settings = {"stage_batch_size": 4, "improve_steps": 1, "save_strategy": "steps", "save_steps": 1}
    one = trainer(tmp_path, train_dataset=stream_of(), num_stages=1, **settings)
    one.train()
    (tmp_path / "prompts-000.parquet").unlink()
    longer = trainer(tmp_path, train_dataset=stream_of(), num_stages=2, **settings)
    with pytest.raises(ValueError, match=r"'prompts-000\.parquet', which says how far the stream was read, is not in"):
        longer.train(resume_from_checkpoint=True)


TWO = """
import sys
from test_prompt_stream import stream_of
from self_training_case import trainer

one = trainer(sys.argv[1], train_dataset=stream_of(), stage_batch_size=6, improve_steps=1, ddp_backend="gloo")
one.train()
rows = one.grower.stage_rows(1).dataset["prompt"][:]
print(f"\\nsaw {one.accelerator.process_index} {rows}\\n", end="", flush=True)
from two_processes import leave
leave()
"""


@pytest.mark.slow
def test_two_processes_see_the_same_prompts(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    done = run_in_two(script, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    saw = re.findall(r"^saw \d (.*)$", done.stdout, re.MULTILINE)
    assert saw == [str(MANY[6:12])] * 2
    assert asked(tmp_path / "run", 1) == MANY[6:12]
