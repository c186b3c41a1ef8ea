"""What wandb, trackio and TensorBoard are told: by stand-ins with their calls, and by those that are installed."""

import importlib.util
import json
import os
import signal
import uuid
from types import SimpleNamespace

import pytest
from checkpoint_case import make
from test_stopping import Signals
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from trl_ext.trainer_kit.run_log import LOG, lines
from trl_ext.trainer_kit.stopping import RunStopped

ALIKE = "findings/all_scores_alike"


class Wandb(WandbCallback):
    """transformers' callback with a wandb that keeps what it is told; its runs are by id."""

    def __init__(self, told: dict):
        self.told = told
        self._wandb = SimpleNamespace(run=None, log=self._log, init=self._init)
        self._initialized, self._log_model = False, SimpleNamespace(is_enabled=False)

    def setup(self, args, state, model, **kwargs):
        if self._wandb.run is None:
            self._wandb.init()
        self._initialized = True

    def _init(self, *, project=None, id=None, resume=None, **name):
        self.opened = project, resume
        run = os.environ.get("WANDB_RUN_ID") or id or f"run-{len(self.told)}"
        self._wandb.run = SimpleNamespace(id=run, summary={})
        self.told.setdefault(run, [])

    def _log(self, values: dict):
        self.told[self._wandb.run.id].append(values)


class Trackio(TrackioCallback):
    """The same with a trackio, whose runs are by name."""

    def __init__(self, told: dict):
        self.told, self.run = told, None
        self._trackio = SimpleNamespace(
            log=self._log,
            finish=lambda: None,
            context_vars=SimpleNamespace(current_run=SimpleNamespace(get=lambda: self.run)),
        )
        self._initialized, self._space_id = False, None

    def setup(self, args, state, model, **kwargs):
        self.run = SimpleNamespace(name=args.run_name or f"name-{len(self.told)}")
        self.told.setdefault(self.run.name, [])
        self._initialized = True

    def _log(self, values: dict):
        self.told[self.run.name].append(values)


class TensorBoard(TensorBoardCallback):
    """The same with a writer."""

    def __init__(self, told: list):
        self.tb_writer = SimpleNamespace(
            add_scalar=lambda name, value, step: told.append({name: value}),
            add_text=lambda name, text, step=None: told.append({name: text}),
            flush=lambda: None,
            close=lambda: None,
        )
        self._SummaryWriter, self.logging_dir = None, ""


def alike(completions, **_):
    return [1.0] * len(completions)


def train(folder, callbacks, *, resume=None, **changes):
    settings = {"logging_steps": 1, "max_steps": 12} | changes
    parts = {"reward_funcs": alike, "callbacks": callbacks}
    trainer = make("ppo", folder, parts=parts, **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def stopped(folder, callbacks):
    with pytest.raises(RunStopped):
        train(folder, [*callbacks, Signals(2, signal.SIGTERM)])


@pytest.fixture(autouse=True)
def no_wandb_variables(monkeypatch):
    for name in ("WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)


def test_metrics_have_one_name_in_all_and_findings_come_with_them(tmp_path):
    wandb, trackio, board = {}, {}, []
    train(tmp_path, [Wandb(wandb), Trackio(trackio), TensorBoard(board)], save_strategy="no")
    (of_wandb,), (of_trackio,) = wandb.values(), trackio.values()
    names = [{name for values in told for name in values} for told in (of_wandb, of_trackio, board)]
    shared = {
        "train/score",
        "train/kl_per_completion",
        "train/completions/mean_length",
        "train/rewards/alike/mean",
        ALIKE,
    }
    assert all(shared <= found for found in names)
    assert names[0] - {"train/global_step"} <= names[1] - {"args", "model_config"}
    for told in (of_wandb, of_trackio, board):
        texts = [values[ALIKE] for values in told if ALIKE in values]
        assert len(texts) == 2 and "rewards differ by 0 around 1" in texts[0]  # when it first showed, and at the end


@pytest.mark.parametrize("resumed", [True, False])
def test_a_resumed_run_goes_on_in_the_same_runs(tmp_path, resumed):
    wandb, trackio = {}, {}
    stopped(tmp_path / "run", [Wandb(wandb), Trackio(trackio)])
    again = Wandb(wandb)
    train(tmp_path / ("run" if resumed else "other"), [again, Trackio(trackio)], resume=resumed or None)
    assert (list(wandb), list(trackio)) == (
        (["run-0"], ["name-0"]) if resumed else (["run-0", "run-1"], ["name-0", "name-1"])
    )
    assert again.opened == (("huggingface", "allow") if resumed else (None, None))
    begun = [line["trackers"] for line in lines(tmp_path / "run" / LOG) if line["kind"] == "begin"]
    assert begun == [{"wandb": "run-0", "trackio": "name-0"}] * (2 if resumed else 1)


@pytest.mark.parametrize("damaged", [None, "x", "[1]"])
def test_a_checkpoint_that_goes_on_elsewhere_brings_its_runs(tmp_path, damaged):
    wandb, trackio = {}, {}
    stopped(tmp_path / "run", [Wandb(wandb), Trackio(trackio)])
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-2")
    kept = checkpoint / "trl_ext_trackers.json"
    assert json.loads(kept.read_text()) == {"wandb": "run-0", "trackio": "name-0"}
    if damaged is not None:
        kept.write_text(damaged)
    train(tmp_path / "other", [Wandb(wandb), Trackio(trackio)], resume=str(checkpoint))
    assert (len(wandb), len(trackio)) == ((1, 1) if damaged is None else (2, 2))


def test_runs_that_the_user_names_win(tmp_path, monkeypatch):
    wandb, trackio = {}, {}
    stopped(tmp_path, [Wandb(wandb), Trackio(trackio)])
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    train(tmp_path, [Wandb(wandb), Trackio(trackio)], resume=True, run_name="mine too")
    assert (list(wandb), list(trackio)) == (["run-0", "mine"], ["name-0", "mine too"])
    assert os.environ["WANDB_RUN_ID"] == "mine"


def test_without_trackers_nothing_is_kept(tmp_path):
    stopped(tmp_path, [])
    told = {}
    train(tmp_path, [Wandb(told)], resume=True)  # one that is used from now on
    assert list(told) == ["run-0"]
    assert [line["trackers"] for line in lines(tmp_path / LOG) if line["kind"] == "begin"] == [{}, {"wandb": "run-0"}]


@pytest.mark.parametrize("damaged", ["x", None, [1], {"wandb": None}])
def test_a_log_with_damaged_runs(tmp_path, damaged):
    stopped(tmp_path, [Wandb({})])
    text = (tmp_path / LOG).read_text()
    found = [json.loads(line) for line in text.splitlines()]
    found[0]["trackers"] = damaged
    (tmp_path / LOG).write_text("".join(json.dumps(line) + "\n" for line in found))
    told = {}
    train(tmp_path, [Wandb(told)], resume=True)
    assert list(told) == ["run-0"]


def has(name: str):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}")


@has("tensorboard")
def test_tensorboard_itself(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, [], save_strategy="no", report_to="tensorboard")
    (folder,) = (tmp_path / "runs").iterdir()
    read = EventAccumulator(str(folder))
    read.Reload()
    assert "train/score" in read.Tags()["scalars"]
    assert any(tag.startswith(ALIKE) for tag in read.Tags()["tensors"])


@has("trackio")
def test_trackio_itself(tmp_path):
    import trackio

    project = f"trl-ext-test-{uuid.uuid4().hex}"  # it has one folder for all, chosen when it is imported
    with pytest.raises(RunStopped):
        train(tmp_path / "run", [Signals(2, signal.SIGTERM)], report_to="trackio", project=project)
    train(tmp_path / "run", [], resume=True, report_to="trackio", project=project)
    (run,) = trackio.Api().runs(project)
    names = [line["trackers"]["trackio"] for line in lines(tmp_path / "run" / LOG) if line["kind"] == "begin"]
    trackio.delete_project(project, force=True)
    assert names == [run.name] * 2


@has("wandb")
def test_wandb_itself(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with pytest.raises(RunStopped):
        train(tmp_path / "run", [Signals(2, signal.SIGTERM)], report_to="wandb")
    wandb.finish()
    train(tmp_path / "run", [], resume=True, report_to="wandb")
    assert ALIKE in wandb.run.summary.keys() and wandb.run.resumed is not None  # noqa: SIM118
    wandb.finish()
    ids = [line["trackers"]["wandb"] for line in lines(tmp_path / "run" / LOG) if line["kind"] == "begin"]
    assert len(ids) == 2 and len(set(ids)) == 1
