"""`trl-ext demo`: the whole chain on a small world of its own, offline, on a CPU."""

import json
import re
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import datasets
import torch
import transformers
from rich.console import Console

from trl_ext import __version__
from trl_ext.demo import stages
from trl_ext.demo.answers import preference_rows, sample_questions
from trl_ext.demo.conclusions import KL, conclusions
from trl_ext.demo.curves import curves, sampled_answers, with_ends
from trl_ext.demo.evaluation import look, measures, of_each, pair_accuracy
from trl_ext.demo.report import RUNS, draw_curves, print_answers, print_conclusions, print_measures
from trl_ext.demo.world import Entity, load_world
from trl_ext.reporting.page import report
from trl_ext.self_training.grow_files import GrowFiles
from trl_ext.self_training.grow_summary import mean_score
from trl_ext.trainer_kit.own_folders import claim_folder
from trl_ext.trainer_kit.seeds import check_seed

IMITATION = 0.1
MARK = "trl_ext_demo.json"  # says of which demo a folder is
FOLDERS = ("sft", "reward", "reward_without_imitation", *(run.lower() for run in RUNS[1:]))
FILES = ("measures.json", "logs.json", "answers.jsonl", "curves.png", "report.html")


def run_demo(output_dir: Path, *, seed: int = 0, quick: bool = False) -> dict[str, dict[str, float]]:
    """SFT → reward model → PPO, RAFT and ReST with R³ beside a control; prints and saves what came of it.

    Args:
        output_dir: Where models, curves and numbers go. The same demo writes over its own; any other folder that holds
            something by those names is refused with a ValueError.
        seed: Of data order, initial heads and sampling.
        quick: A shorter run.

    Returns:
        The measures of each of RUNS.
    """
    check_seed(seed, call=f"run_demo(seed={seed!r})")
    scale = stages.QUICK if quick else stages.FULL
    _claim(output_dir, scale, seed)
    _quiet()
    world, start = load_world(), time.perf_counter()
    console = Console()
    policy = _stage_sft(console, world, output_dir, scale, seed)
    judge = _stage_reward(console, world, policy, output_dir, scale, seed)
    logs = _stage_ppo(console, world, policy, judge, output_dir, scale, seed)

    _stage_self_training(console, world, policy, judge, output_dir, scale, seed)

    questions = sample_questions(world, held_out=True, count=scale.held_out, seed=seed)
    folders = {"before": policy} | {run: output_dir / run.lower() for run in RUNS[1:]}
    looks = {run: look(folder, policy, questions, judge, seed=seed) for run, folder in folders.items()}
    measured = {run: measures(looked, questions, judge) for run, looked in looks.items()}
    texts = {run: looked.samples["completion"][:] for run, looked in looks.items()}
    print_measures(console, measured)
    print_answers(console, questions, texts)
    sampled = sampled_answers(scale)
    said = conclusions(measured, {run: of_each(looked) for run, looked in looks.items()}, sampled)
    print_conclusions(console, said)
    _save(console, output_dir, measured, questions, texts, logs)
    drawn = curves({run: folder for run, folder in folders.items() if run in sampled}, scale)
    _draw(console, output_dir, with_ends(drawn, {run: row[KL] for run, row in measured.items()}, sampled), said)
    console.print(f"{time.perf_counter() - start:.0f} s")
    return measured


def _claim(output_dir: Path, scale: stages.Scale, seed: int) -> None:
    """Make the folder this demo's, which begins anew in it, or refuse it."""
    run = {"seed": seed, "version": __version__} | asdict(scale)
    names = re.compile("|".join(map(re.escape, FOLDERS + FILES)))
    claim_folder(output_dir, MARK, run, names=names, call=f"trl-ext demo --output-dir {output_dir}")


def _stage_sft(console: Console, world: list[Entity], output_dir: Path, scale: stages.Scale, seed: int) -> Path:
    with _timed(console, "SFT") as say:
        policy = stages.supervised(world, output_dir / "sft", scale, seed=seed)
        say(f"{scale.sft_rows} answers of mixed quality imitated")
    return policy


def _stage_reward(
    console: Console, world: list[Entity], policy: Path, output_dir: Path, scale: stages.Scale, seed: int
) -> Path:
    """The reward model with imitation; its accuracy is shown beside that of one without."""
    pairs, accuracy = preference_rows(world, held_out=True, count=400, seed=seed), {}
    with _timed(console, "reward model") as say:
        for name, coef in (("reward_without_imitation", 0.0), ("reward", IMITATION)):
            folder = output_dir / name
            stages.reward_model(world, policy, folder, scale, imitation_coef=coef, seed=seed)
            accuracy[name] = pair_accuracy(folder, pairs)
        without, with_imitation = accuracy.values()
        say(f"held-out pairs ranked right: {without:.1%} without imitation, {with_imitation:.1%} with")
    return output_dir / "reward"


def _stage_ppo(
    console: Console, world: list[Entity], policy: Path, judge: Path, output_dir: Path, scale: stages.Scale, seed: int
) -> dict[str, list[dict]]:
    logs = {}
    for name, product in (("ppo", stages.r3()), ("control", stages.control())):
        label = "R³ + reward model" if name == "ppo" else "length × no repetition + reward model"
        with _timed(console, f"PPO, {label}") as say:
            log = stages.ppo(world, policy, judge, output_dir / name, scale, product=product, seed=seed)
            first, last = (_mean_of(log, "score", part) for part in (slice(3), slice(-3, None)))
            say(f"score {first:.3f} → {last:.3f}")
        logs[label] = log
    return logs


def _stage_self_training(
    console: Console, world: list[Entity], policy: Path, judge: Path, output_dir: Path, scale: stages.Scale, seed: int
) -> None:
    for name, train in (("RAFT", stages.raft), ("ReST", stages.rest)):
        with _timed(console, f"{name}, R³ + reward model") as say:
            folder = train(world, policy, judge, output_dir / name.lower(), scale, seed=seed)
            grows = range(len(list(folder.glob("grow-*.parquet"))))
            scores = [mean_score(GrowFiles(folder, stage)) for stage in grows]
            say(f"score {scores[0]:.3f} → {scores[-1]:.3f} of what was sampled")


def _mean_of(log: list[dict], name: str, part: slice) -> float:
    values = [entry[name] for entry in log if name in entry][part]
    return sum(values) / len(values)


@contextmanager
def _timed(console: Console, stage: str):
    """Print one line of result after a stage."""
    start, lines = time.perf_counter(), []
    yield lines.append
    console.print(
        f"[bold]{stage}[/bold]: {lines[0]} ({time.perf_counter() - start:.0f} s)", highlight=False, soft_wrap=True
    )


def _save(console: Console, output_dir: Path, measures: dict, questions: list[dict], texts: dict, logs: dict) -> None:
    (output_dir / "measures.json").write_text(json.dumps(measures, indent=2, ensure_ascii=False), encoding="utf-8")
    (output_dir / "logs.json").write_text(json.dumps(logs, ensure_ascii=False), encoding="utf-8")
    rows = [row | {run: answers[i] for run, answers in texts.items()} for i, row in enumerate(questions)]
    (output_dir / "answers.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    console.print(f"\nModels, answers and numbers: {output_dir}")


def _draw(console: Console, output_dir: Path, drawn: dict, said: list[str]) -> None:
    """Curves and a report, where they can be drawn."""
    picture = draw_curves(output_dir / "curves.png", drawn)
    if picture is None:
        console.print('For curves and a report: pip install -e ".[plots]"')
        return
    console.print(f"Curves: {picture}")
    page = report([output_dir / run.lower() for run in RUNS[1:]], output_dir / "report.html", said)
    console.print(f"What each run shows, and what to turn: {page}")


def _quiet() -> None:
    """Leave the stages' progress bars, and nothing else, on the screen."""
    torch.set_num_threads(1)  # the models are smaller than the cost of sharing them, and one thread repeats its sums
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
