"""How the demo's runs went, over the answers that each had sampled: of PPO by its log, of RAFT and ReST by their Grows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trl_ext.demo.stages import SAMPLES, Scale
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.trainer_kit.logged_run import logged_run

KL = "KL to SFT per answer (nats)"


@dataclass(frozen=True)
class Panel:
    """One chart.

    Args:
        title: Of it.
        logged: Its name in PPO's log.
        of_grow: Its name in the log of RAFT and ReST.
        column: Or in a Grow's samples.
    """

    title: str
    logged: str
    of_grow: str = ""
    column: str = ""


PANELS = (
    Panel("score that each run was paid", "score", "grow/score"),
    Panel("R³ (watched in the control)", "rewards/R3Reward/mean", column="reward/R3Reward"),
    Panel("closed questions answered right", "rewards/closed_right/mean", column="reward/closed_right"),
    Panel("relevance to the question (open)", "r3/relevance_prompt", "r3/relevance_prompt"),
    Panel("tokens per answer", "completions/mean_length", "grow/length"),
    Panel(KL, "kl_per_completion"),
)
Curves = dict[str, dict[str, tuple[list[float], list[float]]]]  # by run and title: answers sampled before, values


def curves(folders: dict[str, Path], scale: Scale) -> Curves:
    """Of each run by its name."""
    return {
        run: _of_grows(folder, scale) if run in ("RAFT", "ReST") else _of_log(folder, scale)
        for run, folder in folders.items()
    }


def with_ends(found: Curves, kl: dict[str, float], sampled: dict[str, int]) -> Curves:
    """With KL of the runs that log none: 0 at first, and at last what was measured."""
    lacking = {run: {KL: ([0, sampled[run]], [0.0, kl[run]])} for run in found if KL not in found[run]}
    return {run: panels | lacking.get(run, {}) for run, panels in found.items()}


def sampled_answers(scale: Scale) -> dict[str, int]:
    """How many each run samples to learn from."""
    each = scale.stage_batch * SAMPLES
    ppo = scale.rollouts * scale.batch
    return {"PPO": ppo, "RAFT": scale.stages * each, "ReST": scale.grows * each, "control": ppo}


def _of_log(folder: Path, scale: Scale) -> dict:
    """The policy that sampled the first batch had sampled none."""
    found = {panel.title: logged_run(folder).values(panel.logged) for panel in PANELS}
    return {
        title: ([scale.batch * i for i in range(len(values))], values) for title, values in found.items() if values
    }


def _of_grows(folder: Path, scale: Scale) -> dict:
    run = logged_run(folder)
    found = {panel.title: run.values(panel.of_grow) for panel in PANELS if panel.of_grow}
    stages = range(len(list(folder.glob("grow-*.parquet"))))
    columns = [panel.column for panel in PANELS if panel.column]
    tables = [GrowFiles(folder, stage).table(columns) for stage in stages]
    for panel in PANELS:
        if panel.column:
            found[panel.title] = [float(np.nanmean(table[panel.column].to_numpy())) for table in tables]
    each = scale.stage_batch * SAMPLES
    return {title: ([each * i for i in range(len(values))], values) for title, values in found.items()}
