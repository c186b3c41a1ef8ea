"""What `trl-ext demo` shows at its end: a table, answers before and after, and curves."""

from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

RUNS = ("before", "PPO", "RAFT", "ReST", "control")
CURVES = {
    "score that each run was paid": "score",
    "R³ (watched in both)": "rewards/R3Reward/mean",
    "closed questions answered right": "rewards/closed_right/mean",
    "relevance to the question (open)": "r3/relevance_prompt",
    "tokens per answer": "completions/mean_length",
    "KL to SFT per answer (nats)": "kl_per_completion",
}


def print_measures(console: Console, measures: dict[str, dict[str, float]]) -> None:
    """One row per measure, one column per run."""
    table = Table(title="Held-out questions", title_justify="left")
    table.add_column("")
    for run in RUNS:
        table.add_column(run, justify="right")
    for name in measures["before"]:
        table.add_row(name, *(f"{measures[run][name]:.3f}" for run in RUNS))
    console.print(table)


def print_answers(console: Console, questions: list[dict], texts: dict[str, list[str]]) -> None:
    """Three questions with the answers of each run: open and closed ones in turn."""
    kinds = [[i for i, row in enumerate(questions) if row["query_type"] == kind] for kind in ("open", "closed")]
    for n in range(3):
        row = kinds[n % 2][n // 2]
        console.print(f"\n[bold]{questions[row]['prompt']}[/bold] ({questions[row]['query_type']})")
        for run in RUNS:
            console.print(f"  {run:8}{texts[run][row]}", highlight=False, soft_wrap=True)


def draw_curves(path: Path, logs: dict[str, list[dict]]) -> Path | None:
    """Curves of both PPO runs over batches of rollouts, as a PNG; None where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    for axes, (title, name) in zip(figure.subplots(2, 3).flat, CURVES.items(), strict=True):
        for label, log in logs.items():
            values = [entry[name] for entry in log if entry.get(name) is not None]
            axes.plot(range(1, len(values) + 1), values, label=label)
        axes.set(title=title, xlabel="batch of rollouts")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)
    return path
