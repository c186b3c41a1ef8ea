"""A folder belongs to one run, of every trainer: gone on with as it was begun, or as it was accepted to change."""

import errno
import json
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from checkpoint_case import KINDS, PROMPTS, STEPS, assert_same, make, pairs, trained
from datasets import Dataset
from tiny import byte_tokenizer, tiny_llama, tiny_reward_model
from transformers import TrainerCallback
from trl import RewardConfig

from trl_ext import ImitationRewardTrainer, LearnedReward, RepetitionPenalty
from trl_ext.trainer_kit.checkpoint_files import checkpoint_folders
from trl_ext.trainer_kit.run_record import FORMER, RECORD, read_record

CONSTANT = {"lr_scheduler_type": "constant"}


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.step


def stopped(kind: str, folder, step: int = 2, **options):
    """A run that was stopped at a step."""
    parts = {"callbacks": [StopAt(step)]} | options.pop("parts", {})
    one = make(kind, folder, parts=parts, **options)
    one.train()
    return one


def other_prompts():
    return Dataset.from_dict({"prompt": [*PROMPTS[:-1], "else"]})


def odd(completions, **columns):
    return [1.0 for _ in completions]


LONGEST = {"ppo": {"max_steps": STEPS + 2}, "raft": {"num_stages": 3}, "reward": {"max_steps": STEPS + 2}}
OTHERWISE = [
    ("ppo", {"beta": 0.2}, {}, "beta: 0.05 then, 0.2 now"),
    ("ppo", {"learning_rate": 0.1}, {}, "learning_rate: 0.01 then, 0.1 now"),
    ("ppo", {"critic_learning_rate": 0.1}, {}, "critic_learning_rate: None then, 0.1 now"),
    ("ppo", {"weight_decay": 0.5}, {}, "weight_decay: 0.0 then, 0.5 now"),
    ("ppo", {"max_steps": 1}, {}, "max_steps: 4 then, 1 now"),
    ("ppo", {}, {"train_dataset": other_prompts()}, "train_dataset: "),
    ("ppo", {}, {"reward_funcs": odd}, "reward_funcs: "),
    ("ppo", {}, {"value_model": "reward"}, "value_model: None then"),
    ("ppo", {"ptx_coef": 0.1}, {"ptx_dataset": Dataset.from_dict({"text": ["a b c"]})}, "ptx_dataset: None then"),
    ("ppo", {}, {"model": 1}, "model: "),
    ("raft", {"weight_decay": 0.5}, {}, "weight_decay: 0.0 then, 0.5 now"),
    ("raft", {"num_stages": 1}, {}, "num_stages: 2 then, 1 now"),
    ("reward", {"imitation_coef": 0.3}, {}, "imitation_coef: 0.1 then, 0.3 now"),
    ("reward", {"per_device_train_batch_size": 2}, {}, "per_device_train_batch_size: 4 then, 2 now"),
    ("reward", {}, {"train_dataset": pairs().select(range(12))}, "train_dataset: "),
    ("reward", {}, {"model": 1}, "model: "),
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder of each kind, of a run that was stopped; to copy."""
    cache = {}

    def of(kind):
        if kind not in cache:
            cache[kind] = tmp_path_factory.mktemp(kind) / "run"
            stopped(kind, cache[kind], **CONSTANT)
        return cache[kind]

    return of


@pytest.fixture
def copied(begun, tmp_path):
    return lambda kind: shutil.copytree(begun(kind), tmp_path / "run")


def parts_of(kind: str, parts: dict) -> dict:
    """Models by their seed, since parameters of a test are made before it."""
    tiny = tiny_reward_model if kind == "reward" else tiny_llama
    made = {"model": lambda seed: tiny(byte_tokenizer(), seed=seed, tie_word_embeddings=True)}
    made |= {"value_model": lambda name: tiny_reward_model(byte_tokenizer())}
    return {name: made[name](part) if name in made else part for name, part in parts.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_record_is_in_the_folder_and_in_each_checkpoint(begun, kind):
    folder = begun(kind)
    record = read_record(folder)
    assert record["processes"] == 1 and record["trainer"] in ("PPOTrainer", "RAFTTrainer", "ImitationRewardTrainer")
    assert "accept_changes" not in record["config"] and "logging_steps" not in record["config"]
    assert [read_record(path) for path in checkpoint_folders(folder)] == [record] * 2


@pytest.mark.parametrize(("kind", "options", "parts", "named"), OTHERWISE)
def test_what_was_begun_otherwise_is_refused_by_name(copied, kind, options, parts, named):
    folder = copied(kind)
    parts = parts_of(kind, parts)
    one = make(kind, folder, **CONSTANT | options, model=parts.pop("model", None), parts=parts)
    with pytest.raises(ValueError, match=rf"run was begun otherwise; .*{named}"):
        one.train(resume_from_checkpoint=True)
    assert read_record(folder)["config"].items() <= read_record(folder / "checkpoint-2")["config"].items()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_saved_evaluated_and_worked_with_may_change(copied, kind):
    held_out = pairs().select(range(4)) if kind == "reward" else Dataset.from_dict({"prompt": ["where?", "when?"]})
    options = {
        "logging_steps": 3,
        "save_steps": 2,
        "save_total_limit": 5,
        "dataloader_num_workers": 1,
        "run_name": "x",
    }
    options |= {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 2}
    one = make(kind, copied(kind), **CONSTANT | options, parts={"eval_dataset": held_out})
    one.train(resume_from_checkpoint=True)
    assert one.state.global_step == STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_may_become_longer_which_is_said(copied, kind):
    folder = copied(kind)
    one = make(kind, folder, **CONSTANT | LONGEST[kind])
    with pytest.warns(
        UserWarning, match=r"goes on with .*: \d then, \d now\. Where the rate falls over the whole run, it"
    ):
        one.train(resume_from_checkpoint=True)
    assert one.state.global_step == STEPS + 2
    (changed,) = LONGEST[kind].items()
    assert changed in read_record(folder)["config"].items()


# Accepted changes take effect


RATES = [
    ("ppo", {"learning_rate": 0.1}, [0.1, 0.1, 1.0, 1.0], None),  # the head's is ten times as much
    ("ppo", {"critic_learning_rate": 0.3}, [0.01, 0.01, 0.3, 0.3], None),
    ("ppo", {"weight_decay": 0.5}, None, [0.5, 0.0, 0.5, 0.0]),
    ("raft", {"learning_rate": 0.1}, [0.1, 0.1], None),
    ("reward", {"learning_rate": 0.1, "weight_decay": 0.5}, [0.1, 0.1], [0.5, 0.0]),
]


@pytest.mark.parametrize(("kind", "options", "rates", "decay"), RATES)
def test_an_accepted_rate_reaches_the_optimizer(copied, kind, options, rates, decay):
    folder = copied(kind)
    one = make(kind, folder, **CONSTANT | options, accept_changes=list(options))
    with pytest.warns(UserWarning, match="goes on with "):
        one.train(resume_from_checkpoint=True)
    groups = one.optimizer.param_groups
    assert rates is None or [group["lr"] for group in groups] == pytest.approx(rates)
    assert decay is None or [group["weight_decay"] for group in groups] == decay
    assert options.items() <= read_record(folder)["config"].items()
    unchanged = make(kind, shutil.copytree(folder, folder.parent / "again"), **CONSTANT | options)
    unchanged.train(resume_from_checkpoint=True)  # as it is recorded now


@pytest.mark.parametrize("options", [{"learning_rate": 0.1}, {"beta": 0.5}])
def test_an_accepted_change_of_a_killed_run_is_not_lost(copied, options):
    """The folder's record knows of it already, the checkpoint's does not yet."""
    folder = copied("ppo")
    once = make("ppo", folder, **CONSTANT | options, accept_changes=list(options), parts={"callbacks": [StopAt(3)]})
    once.train(resume_from_checkpoint=True)
    shutil.rmtree(folder / "checkpoint-3")
    again = make("ppo", folder, **CONSTANT | options, accept_changes=list(options), parts={"callbacks": [StopAt(3)]})
    again.train(resume_from_checkpoint=True)
    assert_same(trained(once), trained(again))
    unchanged = make("ppo", folder.parent / "other", **CONSTANT, parts={"callbacks": [StopAt(3)]})
    unchanged.train()
    name = "model.embed_tokens.weight"
    assert not torch.equal(trained(once)[name], trained(unchanged)[name])


def test_an_accepted_beta_prices_kl(copied):
    one = make("ppo", copied("ppo"), **CONSTANT, beta=0.5, accept_changes=["beta"])
    one.train(resume_from_checkpoint=True)
    assert one.rollouts.kl_control.beta == 0.5
    assert [entry["beta"] for entry in one.state.log_history if "beta" in entry][-1] == 0.5


def test_rollouts_that_were_sampled_otherwise_are_not_gone_on_with(tmp_path):
    """Stopped at the first of a rollout's two steps: the second is made on new ones, unless only a rate has changed."""
    stopped("ppo", tmp_path / "run", 3, **CONSTANT)
    for options, sampled in (({"gamma": 0.9}, 3), ({"learning_rate": 0.1}, 2)):
        folder = shutil.copytree(tmp_path / "run", tmp_path / next(iter(options)))
        one = make("ppo", folder, **CONSTANT | options, accept_changes=list(options))
        one.train(resume_from_checkpoint=True)
        assert one.rollouts.sampled == sampled


def test_an_unfinished_grow_that_was_sampled_otherwise_begins_anew(tmp_path):
    calls = []

    def even(completions, **columns):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("the service is away")
        return [float(len(set(text))) for text in completions]

    options = CONSTANT | {"prompts_per_part": 8}
    with pytest.raises(RuntimeError):
        make("raft", tmp_path, **options, parts={"reward_funcs": even}).train()
    assert len(list((tmp_path / "grow-001").iterdir())) == 2
    sampled = make(
        "raft", tmp_path, **options, temperature=0.5, accept_changes=["temperature"], parts={"reward_funcs": even}
    )
    with pytest.warns(UserWarning, match=r"goes on with temperature: 1.0 then, 0.5 now"):
        sampled._open(True)
    assert (tmp_path / "grow-000.parquet").is_file() and not (tmp_path / "grow-001").exists()
    (tmp_path / "grow-001").mkdir()
    (tmp_path / "grow-001" / "sampled-00000.parquet").write_bytes(b"of the temperature 0.5")
    sampled._open(True)  # killed again, before a checkpoint knew of it
    assert (tmp_path / "grow-001" / "sampled-00000.parquet").is_file()


@pytest.mark.parametrize(
    ("kind", "options", "parts"),
    [
        ("ppo", {"num_iterations": 4}, {}),
        ("ppo", {"seed": 1}, {}),
        ("ppo", {"optim": "sgd"}, {}),
        ("raft", {"improve_steps": 3}, {}),
        ("raft", {}, {"train_dataset": other_prompts()}),
        ("reward", {}, {"model": 1}),
    ],
)
def test_what_could_not_take_effect_is_refused_even_if_accepted(copied, kind, options, parts):
    name = next(iter(options | parts))
    parts = parts_of(kind, parts)
    model = parts.pop("model", None)
    one = make(kind, copied(kind), **CONSTANT | options, accept_changes=[name], model=model, parts=parts)
    with pytest.raises(ValueError, match=rf"'{name}' cannot change within a run: "):
        one.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", ["beta", ["beat"]])
def test_accept_changes_that_name_nothing(tmp_path, kind, given):
    with pytest.raises(ValueError, match=r"accept_changes=.*(expected a list of texts|is called 'beat')"):
        make(kind, tmp_path / "run", accept_changes=given).train()
    assert not (tmp_path / "run" / RECORD).exists()


def test_accept_changes_that_did_not_change(copied):
    with pytest.warns(UserWarning, match=r"accept_changes: \['max_length'\] did not change"):
        make("reward", copied("reward"), **CONSTANT, accept_changes=["max_length"]).train(resume_from_checkpoint=True)


def plain(folder, **changes):
    """TRL's own config, which has no `accept_changes`."""
    settings = {"save_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False, "max_steps": 2}
    args = RewardConfig(str(folder), save_strategy="steps", gradient_checkpointing=False, **settings | changes)
    tokenizer = byte_tokenizer()
    model = tiny_reward_model(tokenizer)
    return ImitationRewardTrainer(model, args, train_dataset=pairs(), processing_class=tokenizer)


def test_a_plain_config_of_trl(tmp_path):
    plain(tmp_path).train()
    with pytest.raises(
        ValueError, match=r"learning_rate: 0.0001 then, 0.1 now.* ImitationRewardConfig with imitation_c"
    ):
        plain(tmp_path, learning_rate=0.1).train(resume_from_checkpoint=True)
    args = {"learning_rate": 0.1, "imitation_coef": 0.0, "accept_changes": ["learning_rate"], "max_steps": 3}
    args |= {"per_device_train_batch_size": 8, "max_length": 1024, "gradient_checkpointing": True}
    same = make("reward", tmp_path, model=tiny_reward_model(byte_tokenizer()), **args)
    same.train(resume_from_checkpoint=True)
    assert same.state.global_step == 3


def test_another_take_of_a_reward_model_is_named(tmp_path):
    def learned(seed):
        return {"reward_funcs": LearnedReward(tiny_reward_model(byte_tokenizer(), seed=seed), byte_tokenizer())}

    stopped("ppo", tmp_path, 1, parts=learned(0))
    make("ppo", tmp_path, parts={"callbacks": [StopAt(2)]} | learned(0)).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="begun otherwise; weights: "):
        make("ppo", tmp_path, parts=learned(1)).train(resume_from_checkpoint=True)


def test_another_setting_of_a_reward_is_named(tmp_path):
    stopped("raft", tmp_path, 1, parts={"reward_funcs": RepetitionPenalty(ngram=2)})
    with pytest.raises(ValueError, match="begun otherwise; ngram: 2 then, 3 now"):
        make("raft", tmp_path, parts={"reward_funcs": RepetitionPenalty(ngram=3)}).train(resume_from_checkpoint=True)


# A folder belongs to one run


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_run_is_not_begun_where_one_lies(copied, kind):
    folder = copied(kind)
    kept = sorted(folder.iterdir())
    with pytest.raises(
        ValueError, match=r"holds a run already\. Go on with it by resume_from_checkpoint=True, or give"
    ):
        make(kind, folder, **CONSTANT, save_total_limit=1).train()
    assert sorted(folder.iterdir()) == kept


@pytest.mark.parametrize("kind", ["ppo", "reward"])
def test_checkpoints_without_a_record(copied, kind):
    """Of an older version: not begun anew, but gone on with, which is said."""
    folder = copied(kind)
    for path in (folder, *checkpoint_folders(folder)):
        (path / RECORD).unlink()
    with pytest.raises(ValueError, match=r"with 'checkpoint-2', holds a run already\. Go on with it by resume"):
        make(kind, folder, **CONSTANT).train()
    with pytest.warns(UserWarning, match=r"checkpoint-2' has no record of how its run was begun"):
        make(kind, folder, **CONSTANT).train(resume_from_checkpoint=True)
    assert read_record(folder)["config"]["learning_rate"] == 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_left_nothing_but_its_record_is_begun_otherwise(tmp_path, kind):
    """As one that failed for lack of memory, and is begun again with other options."""

    class Fails(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            raise MemoryError

    with pytest.raises(MemoryError):
        make(kind, tmp_path, parts={"callbacks": [Fails()]}).train()
    for resume, rate in ((None, 0.2), (True, 0.3)):
        with pytest.raises(MemoryError):
            make(kind, tmp_path, parts={"callbacks": [Fails()]}, learning_rate=rate).train(
                resume_from_checkpoint=resume
            )
        assert read_record(tmp_path)["config"]["learning_rate"] == rate


@pytest.mark.parametrize(("kind", "other"), [("ppo", "raft"), ("raft", "reward"), ("reward", "ppo")])
def test_a_run_of_another_trainer(copied, kind, other):
    folder = copied(kind)
    for resume in (None, True):
        with pytest.raises(ValueError, match=r"holds a run of \w+Trainer\. Give this one a folder of its own"):
            make(other, folder, **CONSTANT).train(resume_from_checkpoint=resume)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_with_nothing_of_a_run(tmp_path, kind):
    for name in ("notes.txt", "checkpoint-best", "model.safetensors"):
        (tmp_path / name).write_text("mine")
    make(kind, tmp_path, parts={"callbacks": [StopAt(1)]}).train()
    assert (tmp_path / "checkpoint-best").read_text() == "mine"


# All is checked before anything is written


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_that_is_refused_writes_no_record(tmp_path, kind, monkeypatch):
    one = make(kind, tmp_path / "run")
    with pytest.raises(ValueError, match="got int"):
        one.train(resume_from_checkpoint=3)
    with pytest.raises(ValueError, match="there is no such folder"):
        one.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(OSError, match="what is saved takes") as raised:
            one.train()
    assert raised.value.errno == errno.ENOSPC
    assert not (tmp_path / "run").exists() or list((tmp_path / "run").iterdir()) == []
    one.train()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\x00", b""])
def test_a_damaged_record_is_named(copied, kind, content):
    folder = copied(kind)
    (folder / RECORD).write_bytes(content)
    for resume in (None, True):
        with pytest.raises(ValueError, match=rf"'.*{RECORD}' (cannot be read|holds list).*Put a copy in its place"):
            make(kind, folder, **CONSTANT).train(resume_from_checkpoint=resume)
    shutil.copy(folder / "checkpoint-2" / RECORD, folder / RECORD)
    make(kind, folder, **CONSTANT).train(resume_from_checkpoint=True)


def test_a_damaged_record_in_a_checkpoint_is_passed_over(copied):
    folder = copied("reward")
    (folder / "checkpoint-2" / RECORD).write_bytes(b"")
    with pytest.warns(UserWarning, match=f"goes on with checkpoint-1 and passes over checkpoint-2: {RECORD} in it"):
        make("reward", folder, **CONSTANT).train(resume_from_checkpoint=True)


# Elsewhere


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_in_another_folder_brings_its_record(begun, tmp_path, kind):
    whole = make(kind, tmp_path / "whole", **CONSTANT)
    whole.train()
    checkpoint = str(begun(kind) / "checkpoint-2")
    with pytest.raises(ValueError, match=r"begun otherwise; adam_beta1: 0.9 then, 0.5 now"):
        make(kind, tmp_path / "new", **CONSTANT, adam_beta1=0.5).train(resume_from_checkpoint=checkpoint)
    assert not (tmp_path / "new" / RECORD).exists()
    moved = make(kind, tmp_path / "new", **CONSTANT)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "PPOTrainer|RAFTTrainer|ImitationRewardTrainer")
        moved.train(resume_from_checkpoint=checkpoint)
    assert_same(trained(whole), trained(moved))
    assert read_record(tmp_path / "new") == read_record(tmp_path / "whole")


def test_a_checkpoint_of_another_trainer_elsewhere(begun, tmp_path):
    one = make("reward", tmp_path, **CONSTANT, accept_changes=["trainer"])
    with pytest.raises(
        ValueError, match=r"trainer: 'PPOTrainer' then, 'Imitation.*'trainer' cannot change within a run"
    ):
        one.train(resume_from_checkpoint=str(begun("ppo") / "checkpoint-2"))


def test_a_checkpoint_whose_samples_are_not_with_it(begun, tmp_path):
    alone = shutil.copytree(begun("raft") / "checkpoint-2", tmp_path / "alone" / "checkpoint-2")
    with pytest.raises(
        ValueError, match=r"'grow-000.parquet', from which the run was learning, is neither in .*Copy the"
    ):
        make("raft", tmp_path / "new", **CONSTANT).train(resume_from_checkpoint=str(alone))
    assert not (tmp_path / "new" / RECORD).exists()


def test_a_record_by_the_former_name_is_read_and_replaced(copied):
    folder = copied("raft")
    record = json.loads((folder / RECORD).read_text())
    for name in ("trainer", "processes", "reward_settings", "optimizer", "steps_per_improve"):
        del record[name]  # as it was then
    (folder / RECORD).unlink()
    (folder / FORMER).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"temperature: 1.0 then, 0.5 now"):
        make("raft", folder, **CONSTANT, temperature=0.5).train(resume_from_checkpoint=True)
    make("raft", folder, **CONSTANT).train(resume_from_checkpoint=True)
    assert (folder / RECORD).is_file() and not (folder / FORMER).exists()
