"""The frontier's picture: gold, and the proxy that pays, against √KL; a line is the mean over seeds."""

from math import isnan, nan
from pathlib import Path
from statistics import mean

import numpy as np

from examples.benchmarks.frontier.arms import BEST_OF_N, RAFT_FAST, RAFT_SLOW
from examples.benchmarks.frontier.table import Point, between

COLOURS = {
    BEST_OF_N: "black",
    "RAFT": "#d62728",
    RAFT_SLOW: "#d62728",
    RAFT_FAST: "#d62728",
    "ReST": "#ff9d1e",
    "PPO": "#1f5fb4",
    "GRPO": "#17a2b8",
    "RLOO": "#2ca02c",
    "DPO, best and worst": "#8e44ad",
    "DPO, original pairs": "#c98bdb",
}
STYLES = {RAFT_SLOW: (0, (1, 1.5)), RAFT_FAST: (0, (4, 2))}
PANELS = {
    "gold": "gold, which pays nobody (deviations)",
    "proxy": "proxy, which pays (deviations)",
    "right": "closed questions answered right",
}
NATS = (0.1, 0.5, 1, 2, 3, 4, 6, 8, 10, 14, 18, 24)
PLACES = 200


def draw(found: dict[str, list[dict]], path: Path, *, kl: float) -> None:
    """Both scores in deviations of the start's samples, and right answers; dots are the ends of single runs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, sharex=True)
    axes[1].sharey(axes[0])
    for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
        for arm, results in found.items():
            curve(axis, arm, [result["points"] for result in results], name)
        axis.axvline(kl**0.5, color="grey", linewidth=0.8, linestyle=":", zorder=0)
        axis.set_title(title, fontsize=10)
        finish(axis, max(point["kl"] for results in found.values() for run in results for point in run["points"]))
    figure.supxlabel("KL to the start, nats per answer (on a √ scale)", fontsize=9, y=0.15)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower center", ncols=5, fontsize=8, frameon=False, handlelength=2.4)
    figure.subplots_adjust(left=0.035, right=0.99, top=0.93, bottom=0.27, wspace=0.13)
    figure.savefig(path, dpi=100)


def curve(axis, arm: str, runs: list[list[Point]], name: str) -> None:
    """The mean over seeds as far as all of them get, and where each ends."""
    places = np.linspace(0, max(point["kl"] for points in runs for point in points) ** 0.5, PLACES)
    values = [over_seeds(runs, name, float(place)) for place in places]
    style = {"color": COLOURS[arm], "linestyle": STYLES.get(arm, "-")}
    width = 1.2 if arm in STYLES else 1.9
    axis.plot(places, values, label=arm, linewidth=width, zorder=3 if arm == BEST_OF_N else 2, **style)
    ends = [(points[-1]["kl"] ** 0.5, points[-1][name]) for points in runs]
    axis.scatter(*zip(*ends, strict=True), color=COLOURS[arm], s=9, alpha=0.55, linewidths=0)


def over_seeds(runs: list[list[Point]], name: str, place: float) -> float:
    """Mean at one √KL; NaN where some seed does not get there."""
    values = [points[0][name] if place == 0 else between(points, name, place**2) for points in runs]
    return nan if any(map(isnan, values)) else mean(values)


def finish(axis, most: float) -> None:
    """Nats at their roots."""
    nats = [0, *(value for value in NATS if value <= most)]
    axis.set_xticks([value**0.5 for value in nats], [f"{value:g}" for value in nats])
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlim(0, most**0.5 * 1.02)
