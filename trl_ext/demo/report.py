"""What `trl-ext demo` shows at its end: a table, answers before and after, and curves."""

from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trl_ext.demo.curves import PANELS, Curves

RUNS = ("before", "PPO", "RAFT", "ReST", "control")
LABELS = {run: f"{run}, R³" for run in RUNS[1:]} | {"control": "PPO, length × no repetition (control)"}


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


def print_conclusions(console: Console, said: list[str]) -> None:
    """A paragraph each."""
    console.print("\n[bold]What to conclude[/bold]")
    for sentence in said:
        console.print(f"- {sentence}", highlight=False, markup=False)


def draw_curves(path: Path, curves: Curves) -> Path | None:
    """Curves of all runs over the answers they sampled, as a PNG; None where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for number, (run, panels) in enumerate(curves.items()):
            steps, values = panels.get(panel.title, ([], []))
            style = {"marker": "o" if len(values) < 10 else "", "linestyle": ":" if len(values) == 2 else "-"}
            axes.plot(steps, values, label=LABELS[run], color=f"C{number}", **style)
        axes.set(title=panel.title, xlabel="answers sampled before")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)
    return path
