"""Rewards side by side as a picture, by matplotlib, which needs no screen."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from trl_ext.reward_evaluation.pair_statistics import wilson_interval
from trl_ext.reward_evaluation.reward_findings import Findings
from trl_ext.trainer_kit.whole_files import written_whole


def draw(path: str | PathLike, evaluations: Sequence[Findings]) -> None:
    """Write the picture as PNG.

    Raises:
        ImportError: Where matplotlib is not installed, with the line that installs it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('RewardEvaluation.save_png draws with matplotlib: pip install "trl-ext[plots]"') from error
    groups = max(len(each.groups) for each in evaluations)
    figure = Figure(figsize=(13, max(4, 0.28 * groups + 1)), layout="constrained")
    for axes, panel in zip(figure.subplots(1, 3), (_reliability, _length, _groups), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        panel(axes, evaluations)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False)
    with written_whole(Path(path)) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _reliability(axes, evaluations: Sequence[Findings]) -> None:
    axes.plot((0.5, 1), (0.5, 1), color="grey", linestyle=":", linewidth=1)
    for number, each in enumerate(evaluations):
        x, y = [b.confidence for b in each.reliability], [b.right for b in each.reliability]
        ends = [wilson_interval(b.right, b.weight) for b in each.reliability]
        down, up = (
            [v - low for v, (low, _) in zip(y, ends, strict=True)],
            [h - v for v, (_, h) in zip(y, ends, strict=True)],
        )
        bars = [[max(value, 0.0) for value in side] for side in (down, up)]
        axes.errorbar(
            x, y, yerr=bars, marker="o", markersize=3, linewidth=1, color=f"C{number}", label=_plain(each.name)
        )
    axes.set(
        title="reliability",
        xlabel="confidence σ(|Δ|)",
        ylabel="share that is right",
        xlim=(0.49, 1.01),
        ylim=(-0.03, 1.03),
    )


def _length(axes, evaluations: Sequence[Findings]) -> None:
    for number, each in enumerate(evaluations):
        longer = [a - b for a, b in zip(each.pairs["chosen_length"], each.pairs["rejected_length"], strict=True)]
        axes.scatter(longer, each.pairs["gap"], s=6, alpha=0.4, color=f"C{number}", label=_plain(each.name))
    for line in (axes.axhline, axes.axvline):
        line(0, color="grey", linewidth=0.6)
    axes.set(title="score against length, chosen less rejected", xlabel="characters", ylabel="Δ score")
    axes.set_xscale("symlog", linthresh=10)


def _groups(axes, evaluations: Sequence[Findings]) -> None:
    names = list(dict.fromkeys(group for each in evaluations for group in each.groups))[::-1]
    step = 0.6 / len(evaluations)
    for number, each in enumerate(evaluations):
        there = [(place, each.groups[name]) for place, name in enumerate(names)]
        for place, entry in ((place, entry) for place, entry in there if entry.get("accuracy") is not None):
            height = place + step * ((len(evaluations) - 1) / 2 - number)
            axes.plot((entry["low"], entry["high"]), (height, height), color=f"C{number}", linewidth=1)
            axes.plot(entry["accuracy"], height, marker="o", markersize=3, color=f"C{number}")
            if number == 0 and entry.get("length_only") is not None:
                axes.plot(entry["length_only"], place, marker="|", color="black", markersize=8)
    axes.axvline(0.5, color="grey", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(names)), [_plain(name) for name in names], fontsize=7)
    axes.set(title="accuracy (black: length only)", xlim=(-0.02, 1.02))


def _plain(text: str) -> str:
    """No mathematics: matplotlib reads what is between dollars."""
    return text.replace("$", r"\$")
