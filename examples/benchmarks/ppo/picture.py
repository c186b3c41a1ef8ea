"""The picture of PPO against others: both scores over time, and over the KL that was spent for them."""

from pathlib import Path

import numpy as np

from examples.benchmarks.ppo.report import value_at

SCORES = {"reward": "reward that it was trained on", "judge": "judge's score"}


def draw(found: dict[str, list[dict]], path: Path) -> None:
    """Two scores by two costs; a line is the mean over seeds at equal times, a band their deviation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharex="col", sharey="row")
    for number, (arm, runs) in enumerate(found.items()):
        color, (times, curves) = f"C{number}", curves_of(runs)
        for row, name in enumerate(SCORES):
            middle, spread = curves[name].mean(0), curves[name].std(0, ddof=min(1, len(runs) - 1))
            axes[row, 0].plot(times, middle, color=color, label=arm)
            axes[row, 0].fill_between(times, middle - spread, middle + spread, color=color, alpha=0.12, linewidth=0)
            axes[row, 1].plot(curves["kl"].mean(0), middle, color=color, marker=".")
            ends = [[result["points"][-1][key] for result in runs] for key in ("kl", name)]
            axes[row, 1].scatter(*ends, color=color, alpha=0.4, marker="x")
    for row, title in enumerate(SCORES.values()):
        axes[row, 0].set_ylabel(f"{title}, held-out prompts")
    axes[1, 0].set_xlabel("time on the clock (CPU seconds)")
    axes[1, 1].set_xlabel("KL to the start, nats per completion (crosses: ends of single runs)")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", ncols=len(found))
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def curves_of(runs: list[dict], count: int = 13) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Times up to where the first run ends, and at each of them every run's measures, `(runs, times)`."""
    times = np.linspace(0.0, min(result["points"][-1]["clock"] for result in runs), count)
    names = (*SCORES, "kl")
    return times, {
        name: np.array([[value_at(result, name, time, by="clock") for time in times] for result in runs])
        for name in names
    }
