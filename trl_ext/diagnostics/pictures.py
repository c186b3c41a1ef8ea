"""A diagnosis as a picture, by matplotlib, which needs no screen."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from trl_ext.diagnostics.gold_curve import PREFIX, GoldCurve
from trl_ext.diagnostics.look import Look
from trl_ext.trainer_kit.whole_files import written_whole

History = Sequence[Mapping[str, float]]
SHARES = ("length_share", "copied", "repetition", "no_eos")


def draw(path: str | PathLike, history: History, looks: Sequence[Look], gold: GoldCurve | None) -> None:
    """Write the picture as PNG.

    Args:
        path: The file.
        history: Of each look its step and its measures.
        looks: Those whose completions are drawn one by one, the first in grey.
        gold: Proxy against gold, where it was watched.

    Raises:
        ImportError: Where matplotlib is not installed, with the line that installs it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Diagnosis.save_png draws with matplotlib: pip install "trl-ext[plots]"') from error
    panels = [(_score_against_length, looks), (_shares, history), (_factors, history)] + (
        [(_gold, gold)] if gold else []
    )
    figure = Figure(figsize=(4.4 * len(panels), 3.6), layout="constrained")
    for axes, (panel, what) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        panel(axes, what)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False)
    with written_whole(Path(path)) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _score_against_length(axes, looks: Sequence[Look]) -> None:
    for look, color in zip(reversed(looks), ("#c44e52", "#999999"), strict=False):
        pairs = [pair for pair in zip(look.lengths, look.scores, strict=True) if pair[1] is not None]
        axes.scatter(*zip(*pairs, strict=True), s=9, alpha=0.6, color=color, label=f"step {look.step}")
    axes.set(title="score against length", xlabel="tokens", ylabel="score")


def _shares(axes, history: History) -> None:
    for name in SHARES:
        _curve(axes, history, name, name.replace("_", " "))
    axes.set(title="length's share, copied, repeated, cut", xlabel="step", ylim=(-0.03, 1.03))


def _factors(axes, history: History) -> None:
    names = dict.fromkeys(name for entry in history for name in entry)
    for name in (name.removeprefix(PREFIX) for name in names if name.startswith(f"{PREFIX}factor_share/")):
        _curve(axes, history, name, name.partition("/")[2])
    axes.set(title="share of the score within prompts, by factor", xlabel="step", ylim=(-0.03, 1.03))


def _curve(axes, history: History, name: str, label: str) -> None:
    points = [(entry["step"], entry[PREFIX + name]) for entry in history if PREFIX + name in entry]
    if points:
        axes.plot(*zip(*points, strict=True), marker=".", linewidth=1.2, label=label.replace("$", r"\$"))


def _gold(axes, curve: GoldCurve) -> None:
    other = axes.twinx()
    axes.errorbar(curve.steps, curve.proxy, curve.proxy_errors, color="#4c72b0", linewidth=1.2, label="proxy")
    other.errorbar(curve.steps, curve.gold, curve.gold_errors, color="#dd8452", linewidth=1.2, label="gold")
    axes.set_ylabel("proxy", color="#4c72b0")
    other.set_ylabel("gold", color="#dd8452")
    if curve.turning_point is not None:
        axes.axvline(curve.turning_point, color="black", linestyle=":", linewidth=1)
    axes.set(title="proxy against gold", xlabel="step")
