"""Killed anywhere, a resumed run samples no finished part again and ends bit for bit like one that was left alone."""

import errno
import json
import os
import random
import shutil
import signal
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from safetensors.torch import load_file
from self_training_case import PROMPTS, even_letters, trainer
from tiny import byte_tokenizer, tiny_llama
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback

from examples.benchmarks.common.killed_runs import SAMPLED_LOG, LoggedGenerator, digest
from trl_ext import RAFTTrainer, ReSTTrainer
from trl_ext.self_training.run_folder import forget_run
from trl_ext.self_training.stage_table import TABLE
from trl_ext.trainer_kit.checkpoint_files import checkpoint_folders
from trl_ext.trainer_kit.run_log import LOG
from trl_ext.trainer_kit.run_record import FORMER, RECORD

LORA = LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
HELD_OUT = Dataset.from_dict({"prompt": ["where?", "when?"]})
RUNS = {
    "raft": (RAFTTrainer, {"beta": 0.05, "peft_config": LORA}),
    "raft_plus_plus": (RAFTTrainer, {"importance_clip": 0.2, "fresh_optimizer": False}),
    "rest": (
        ReSTTrainer,
        {
            "thresholds": [0.1, 0.4],
            "score_map": "running",
            "eval_dataset": HELD_OUT,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "keep_best": True,
            "improve_patience": 1,
        },
    ),
    "rest_em": (ReSTTrainer, {"thresholds": [0.3], "score_map": "grow", "restart_from_base": True}),
    "stream": (
        RAFTTrainer,
        {"train_dataset": lambda: shuffled_stream(), "stage_batch_size": 5},
    ),  # ends in the second stage
    "8 bit": (RAFTTrainer, {"beta": 0.05, "peft_config": LORA}),
}


def run(folder: Path, name: str, resume: bool, watch=None) -> None:
    cls, options = RUNS[name]
    options = {key: make() if callable(make) else make for key, make in options.items()}
    one = trainer(
        folder / "run",
        cls,
        model=policy_8_bit(folder) if name == "8 bit" else None,
        num_stages=3,
        improve_steps=5,
        prompts_per_part=3,
        save_strategy="steps",
        save_steps=3,
        logging_steps=100,
        generator=LoggedGenerator(folder / SAMPLED_LOG),
        callbacks=[watch] if watch else [],
        **options,
    )
    one.train(resume_from_checkpoint=resume)
    one.save_model(folder / "final")


def shuffled_stream() -> IterableDataset:
    return Dataset.from_dict({"prompt": PROMPTS}).to_iterable_dataset().shuffle(seed=0, buffer_size=4)


def policy_8_bit(folder: Path):
    path = folder.parent / "base"
    if not path.exists():
        tiny_llama(byte_tokenizer()).save_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


class KillAt(TrainerCallback):
    """Counts what a run does to the disk, and its steps; kills the process at one of these events.

    A file that is renamed has been written, a checkpoint's are written one after another: between any two of them a
    run may die.
    """

    def __init__(self, event: int | None):
        self.event, self.count = event, 0
        self._wrap(os, "replace")
        self._wrap(torch, "save")
        self._wrap(json, "dumps")  # stage tables, run records, trainer states
        self._wrap(Path, "write_text")

    def _wrap(self, module, name: str) -> None:
        inner = getattr(module, name)

        def wrapper(*args, **kwargs):
            self.tick()
            return inner(*args, **kwargs)

        setattr(module, name, wrapper)

    def on_step_begin(self, args, state, control, **kwargs):
        self.tick()

    def tick(self) -> None:
        self.count += 1
        if self.count == self.event:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(folder: Path, name: str, resume: bool, event: int | None) -> int:
    """Run in a forked process, killed at an event; its number of events, 0 where it was killed."""
    process = os.fork()
    if process == 0:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            watch = KillAt(event)
            run(folder, name, resume, watch)
            (folder / "events").write_bytes(str(watch.count).encode())
            os._exit(0)
        except BaseException:
            (folder / "error").write_bytes(traceback.format_exc().encode())
            os._exit(1)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return 0
    assert status == 0, (folder / "error").read_text()
    return int((folder / "events").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Of each kind of run: what it ends with when nothing happens to it, and how many events it has."""
    cache: dict[str, tuple[dict, int]] = {}

    def of(name: str):
        if name not in cache:
            folder = tmp_path_factory.mktemp("alone") / "run"
            folder.mkdir()
            events = in_child(folder, name, resume=False, event=None)
            cache[name] = digest(folder), events
        return cache[name]

    return of


def check_killed(folder: Path, name: str, alone, event: int) -> None:
    expected, events = alone(name)
    folder.mkdir()
    assert in_child(folder, name, resume=False, event=1 + event % (events - 1)) == 0
    in_child(folder, name, resume=True, event=None)
    assert digest(folder) == expected
    counts = Counter((folder / SAMPLED_LOG).read_text().splitlines())
    assert sum(count - 1 for count in counts.values()) <= 1  # the part that the kill interrupted


@pytest.mark.parametrize("event", random.Random(4).sample(range(10_000), 5))
def test_killed_at_random_points_a_run_ends_alike(tmp_path, alone, event):
    check_killed(tmp_path / "killed", "raft", alone, event)


@pytest.mark.parametrize("name", [name for name in RUNS if name != "raft"])
@pytest.mark.parametrize("event", random.Random(5).sample(range(10_000), 1))
def test_every_kind_of_run_ends_alike(tmp_path, alone, name, event):
    check_killed(tmp_path / "killed", name, alone, event)


@pytest.mark.parametrize("event", random.Random(6).sample(range(10_000), 3))
def test_killed_on_a_drive_that_cannot_rename(tmp_path, alone, monkeypatch, event):
    def replace(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    def halves(source, target):
        content = source.read()
        target.write(content[: len(content) // 2])
        target.flush()
        json.dumps(None)  # an event
        target.write(content[len(content) // 2 :])

    alone("raft")
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(shutil, "copyfileobj", halves)
    check_killed(tmp_path / "killed", "raft", alone, event)
    left = [path.name for path in (tmp_path / "killed").rglob("*") if path.suffix in (".partial", ".copying")]
    assert left == []


def test_a_run_may_be_killed_again_and_again(tmp_path, alone):
    expected, events = alone("rest")
    folder = tmp_path / "killed"
    folder.mkdir()
    for event in (events // 7, events // 4, events // 3, None):
        in_child(folder, "rest", resume=True, event=event)
    assert digest(folder) == expected


# A folder belongs to one run


def small(folder, **changes):
    return trainer(folder, **{"num_stages": 1, "save_strategy": "steps", "save_steps": 2} | changes)


def test_another_run_is_not_begun_in_a_runs_folder(tmp_path):
    small(tmp_path).train()
    with pytest.raises(ValueError, match=r"holds a run already. Go on with it by resume_from_checkpoint=True, or"):
        small(tmp_path).train()


def test_a_changed_option_is_named(tmp_path):
    small(tmp_path).train()
    with pytest.raises(ValueError, match=r"begun otherwise; temperature: 1.0 then, 0.7 now. Go on with the same"):
        small(tmp_path, temperature=0.7).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompts": [*PROMPTS[:-1], "else"]}, "train_dataset"),
        ({"reward_funcs": lambda completions, **columns: [0.0] * len(completions)}, "reward_funcs"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"num_generations": 3}, "num_generations"),
    ],
)
def test_other_data_rewards_or_settings_are_refused(tmp_path, changes, named):
    small(tmp_path).train()
    with pytest.raises(ValueError, match=named):
        small(tmp_path, **changes).train(resume_from_checkpoint=True)


def test_another_model_is_refused(tmp_path):
    small(tmp_path / "full").train()
    with pytest.raises(ValueError, match="begun otherwise; model: "):
        small(tmp_path / "full", model=tiny_llama(byte_tokenizer(), seed=1)).train(resume_from_checkpoint=True)
    small(tmp_path / "lora", peft_config=LORA).train()
    other = LoraConfig(r=4, lora_alpha=3, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="begun otherwise; lora_alpha: 8 then, 3 now"):
        small(tmp_path / "lora", peft_config=other).train(resume_from_checkpoint=True)


def test_a_trainer_whose_weights_have_moved_needs_a_checkpoint(tmp_path):
    """Else it would learn from its first Grow once more, with the weights that it has by now."""
    calls = []

    def breaks_later(completions, **columns):
        calls.append(1)
        if len(calls) == 5:  # three parts in the first stage
            raise RuntimeError("the service is away")
        return even_letters(completions)

    one = small(tmp_path, reward_funcs=breaks_later, num_stages=2, save_strategy="no")
    with pytest.raises(RuntimeError):
        one.train()
    with pytest.raises(ValueError, match=r"weights of this trainer have moved .* Build the trainer anew"):
        one.train(resume_from_checkpoint=True)
    again = small(tmp_path, reward_funcs=breaks_later, num_stages=2, save_strategy="no")
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == again.state.max_steps


def test_what_a_kill_leaves_around_the_end_of_a_grow_is_tidied(tmp_path):
    small(tmp_path).train()
    parts = tmp_path / "grow-000"
    parts.mkdir()
    (parts / "scored-00000.parquet").write_bytes(b"already joined")
    partial = tmp_path / "grow-001.parquet.123.partial"
    partial.write_bytes(b"half")
    for checkpoint in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    small(tmp_path).train(resume_from_checkpoint=True)
    assert sorted(path.name for path in tmp_path.glob("grow-*")) == ["grow-000.parquet"]


FOREIGN = (
    "movie.mp4.partial",
    "Downloads/movie.mp4.partial",
    "Downloads/grow-001.parquet.123.partial",
    "grow-plan.parquet.12.partial",
    "grow-notes/sampled-00000.parquet.1.partial",
    "best-improve-mine.safetensors",
    "checkpoint-notes/a.txt",
)


def test_files_of_others_in_the_folder_stay(tmp_path):
    for name in FOREIGN:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    for resume in (None, True):
        small(tmp_path, eval_dataset=HELD_OUT, eval_strategy="steps", eval_steps=2, keep_best=True).train(
            resume_from_checkpoint=resume
        )
    assert all((tmp_path / name).read_text() == "mine" for name in FOREIGN)


@pytest.mark.parametrize("name", ["initial_weights.safetensors", "best-improve-000-step-2.safetensors", "grow-000"])
def test_files_that_a_run_would_write_over_are_refused_by_name(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"with '{name}', holds a run already of another trainer"):
        small(tmp_path).train()
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", [RECORD, FORMER])
def test_killed_while_it_wrote_its_record_a_run_begins(tmp_path, name):
    (tmp_path / f"{name}.12.partial").write_text("{")
    (tmp_path / f"{name}.13.copying").touch()
    (tmp_path / name).write_text("{")  # half copied
    small(tmp_path).train(resume_from_checkpoint=True)
    assert sorted(path.name for path in tmp_path.glob("*_run.json*")) == [RECORD]


def test_a_run_that_is_forgotten_leaves_what_is_not_its_own(tmp_path):
    small(tmp_path).train()
    (tmp_path / "grow-000").mkdir()
    for name in ("grow-000-notes.txt", "grow-000/mine.txt"):
        (tmp_path / name).write_text("mine")
    before = {path.name for path in tmp_path.glob("[cR]*")}  # checkpoints and the model card
    forget_run(tmp_path)
    assert set(os.listdir(tmp_path)) == before | {"grow-000", "grow-000-notes.txt"}
    forget_run(tmp_path)
    assert os.listdir(tmp_path / "grow-000") == ["mine.txt"]


def test_an_older_checkpoint_still_has_the_best_weights_that_it_goes_on_from(tmp_path):
    run(tmp_path, "rest", resume=False)
    whole = load_file(tmp_path / "final" / "model.safetensors")
    folders = checkpoint_folders(tmp_path / "run")
    older = next(folder for folder in folders if len(json.loads((folder / TABLE).read_text())["improves"]) == 2)
    for folder in folders[: folders.index(older)]:
        (folder / "optimizer.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match=rf"goes on with {older.name} and passes over"):
        run(tmp_path, "rest", resume=True)
    resumed = load_file(tmp_path / "final" / "model.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_a_damaged_finished_grow_is_named(tmp_path):
    small(tmp_path).train()
    (tmp_path / "grow-000.parquet").write_bytes(b"PAR1 nothing")
    for checkpoint in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(ValueError, match=r"grow-000.parquet cannot be read .*Restore it; or begin anew in another"):
        small(tmp_path).train(resume_from_checkpoint=True)


def test_how_a_run_is_logged_may_change(tmp_path):
    small(tmp_path).train()
    small(tmp_path, logging_steps=3, save_steps=5, run_name="other").train(resume_from_checkpoint=True)


def test_a_run_that_was_killed_before_it_wrote_anything_begins(tmp_path):
    one = small(tmp_path)
    one.train(resume_from_checkpoint=True)
    assert one.state.global_step == one.state.max_steps


def test_checkpoints_of_another_trainer_are_refused(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    for resume in (True, None):
        with pytest.raises(ValueError, match=r"holds a run already of another trainer. Give this one a folder of"):
            small(tmp_path).train(resume_from_checkpoint=resume)


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path):
    small(tmp_path / "a").train()
    checkpoint = tmp_path / "a" / "checkpoint-2"
    (checkpoint / "stage_table.json").unlink()
    with pytest.raises(ValueError, match=r"no stage_table.json in it, so it is not a checkpoint of RAFT or ReST"):
        small(tmp_path / "a").train(resume_from_checkpoint=str(checkpoint))


def test_a_finished_run_that_is_resumed_changes_nothing(tmp_path):
    one = small(tmp_path)
    one.train()
    again = small(tmp_path)
    again.train(resume_from_checkpoint=True)
    weights = one.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in again.model.state_dict().items())


# What fails leaves what was grown


def test_a_reward_that_raises_leaves_the_samples(tmp_path):
    def broken(completions, prompts, **columns):
        if PROMPTS[4] in prompts:
            raise RuntimeError("the service is away")
        return even_letters(completions)

    broken.__name__ = "even_letters"
    with pytest.raises(RuntimeError, match="the service is away"):
        small(tmp_path / "run", reward_funcs=broken).train()
    assert sorted(os.listdir(tmp_path / "run" / "grow-000")) == [
        "sampled-00001.parquet",
        "sampled-00002.parquet",
        "scored-00000.parquet",
    ]
    log = tmp_path / "log"
    mended = small(tmp_path / "run", generator=LoggedGenerator(log))
    mended.train(resume_from_checkpoint=True)
    assert not log.exists()  # nothing was sampled again
    whole = small(tmp_path / "whole")
    whole.train()
    weights = whole.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in mended.model.state_dict().items())


def test_a_damaged_part_costs_that_part(tmp_path):
    def broken(completions, **columns):
        raise RuntimeError

    broken.__name__ = "even_letters"
    with pytest.raises(RuntimeError):
        small(tmp_path, reward_funcs=broken).train()
    part = tmp_path / "grow-000" / "sampled-00001.parquet"
    part.write_bytes(b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"sampled-00001.parquet cannot be read.*Delete this one file and go on"):
        small(tmp_path).train(resume_from_checkpoint=True)
    part.unlink()
    log = tmp_path / "log"
    small(tmp_path, generator=LoggedGenerator(log)).train(resume_from_checkpoint=True)
    assert [line.split()[1] for line in log.read_text().splitlines()] == ["1"]


def test_a_run_that_ended_early_has_ended_when_it_is_resumed(tmp_path):
    """Its mean scores were level: a resumed run grows no further stage, and no weight or step changes."""
    level = {"num_stages": 8, "level_stages": 2, "learning_rate": 0.0, "save_strategy": "epoch"}
    one = small(tmp_path, **level)
    one.train()
    again = small(tmp_path, **level)
    log = (tmp_path / LOG).read_bytes()
    with pytest.warns(UserWarning, match=r"finished already, after step .*: nothing was trained.*raise level_stages"):
        again.train(resume_from_checkpoint=True)
    assert again.was_finished and (tmp_path / LOG).read_bytes() == log
    assert one.state.global_step == again.state.global_step < one.state.max_steps
    assert len(list(tmp_path.glob("grow-*"))) == len(one.table.improves)


@pytest.mark.parametrize(
    "early",
    [
        {"level_stages": 2, "learning_rate": 0.0, "num_stages": 8},
        {
            "improve_patience": 1,
            "eval_dataset": HELD_OUT,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "improve_steps": 8,
        },
    ],
    ids=["level", "patience"],
)
def test_a_run_that_ends_early_leaves_its_last_checkpoint(early, tmp_path):
    """As Trainer does behind the last of all steps, whatever save_steps is: given again, nothing is done once more."""
    options = early | {"save_strategy": "steps", "save_steps": 100, "reward_funcs": no_better}
    one = small(tmp_path, **options)
    one.train()
    assert (tmp_path / f"checkpoint-{one.state.global_step}").is_dir()
    again = small(tmp_path, **options)
    with pytest.warns(UserWarning, match="nothing was trained"):
        again.train(resume_from_checkpoint=True)
    assert again.was_finished
    for before, now in zip(one.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(before, now)


def no_better(prompts, completions, **columns):
    """Held-out prompts earn less at every look; of others a longer completion earns more."""
    no_better.looks += prompts[0] in HELD_OUT["prompt"]
    return [-no_better.looks if prompts[0] in HELD_OUT["prompt"] else float(len(text)) for text in completions]


no_better.looks = 0
