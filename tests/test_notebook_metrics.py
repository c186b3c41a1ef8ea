"""The table of a notebook, without one: what it would show is HTML."""

import re
import subprocess
import sys

import pytest
from checkpoint_case import KINDS, make, pairs
from transformers.utils import notebook
from transformers.utils.notebook import NotebookProgressCallback

from trl_ext.trainer_kit.notebook_metrics import NotebookMetrics


class Screen:
    """Stands for IPython's display, which needs a kernel."""

    def __init__(self):
        self.shown = ""

    def HTML(self, text):
        return text

    def display(self, text, display_id=False):
        self.shown = text
        return self

    update = display


@pytest.fixture
def screen(monkeypatch) -> Screen:
    screen = Screen()
    monkeypatch.setattr(notebook, "disp", screen, raising=False)
    return screen


SHOWN = {
    "ppo": ["score", "kl_per_completion", "completions/mean_length", "explained_variance"],
    "raft": ["stage", "grow/score", "grow/kept", "loss"],
    "reward": ["accuracy", "margin", "ranking_loss", "imitation_loss"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_trainer_shows_what_matters(kind, screen, tmp_path):
    trainer = make(
        kind, tmp_path, logging_steps=1, save_strategy="no", parts={"callbacks": [NotebookProgressCallback()]}
    )
    trainer.train()
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert NotebookMetrics in kinds and NotebookProgressCallback not in kinds
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)", line) for line in screen.shown.split("<tr")[1:]]
    columns, last = rows[0], rows[-1]
    assert columns[0] == "Step" and set(SHOWN[kind]) <= set(columns)
    name = SHOWN[kind][-1]
    logged = next(entry for entry in reversed(trainer.state.log_history) if name in entry)
    assert last[columns.index(name)] == f"{logged[name]:.4g}"


def test_evaluations_have_columns_of_their_own(screen, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no", "logging_steps": 1}
    parts = {"callbacks": [NotebookProgressCallback()], "eval_dataset": pairs()}
    make("reward", tmp_path, parts=parts, **options).train()
    assert "eval_accuracy" in screen.shown


def test_without_a_notebook_nothing_changes(tmp_path):
    trainer = make("ppo", tmp_path)
    before = [type(callback) for callback in trainer.callback_handler.callbacks]
    trainer.train()
    assert [type(callback) for callback in trainer.callback_handler.callbacks] == before


def test_no_notebook_needs_no_ipython():
    """Which no trainer depends on."""
    code = "import sys; sys.modules['IPython'] = None; from trl_ext import PPOTrainer, RAFTTrainer, ImitationRewardTrainer"
    subprocess.run([sys.executable, "-c", code], check=True)
