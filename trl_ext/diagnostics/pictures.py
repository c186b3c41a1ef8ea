"""A diagnosis as a picture, by matplotlib, which needs no screen."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from trl_ext.diagnostics.gold_curve import PREFIX, GoldCurve
from trl_ext.diagnostics.look import Look
from trl_ext.trainer_kit.whole_files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    figure = picture(history, looks, gold)
    with written_whole(Path(path)) as partial:
        figure.savefig(partial, dpi=120, format="png")


def picture(history: History, looks: Sequence[Look], gold: GoldCurve | None) -> "Figure":
    """The same, not written; panels that have nothing to show are left out."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Diagnosis.save_png draws with matplotlib: pip install "trl-ext[plots]"') from error
    panels = [(_score_against_length, _scored(looks)), (_shares, history), (_factors, history), (_gold, gold)]
    panels = [(panel, what) for panel, what in panels if what and (panel is not _factors or _factor_names(history))]
    figure = Figure(figsize=(4.4 * len(panels), 3.6), layout="constrained")
    for axes, (panel, what) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        curves = [handle for own in panel(axes, what) for handle in own.get_legend_handles_labels()[0]]
        if curves:
            axes.legend(handles=curves, fontsize=7, frameon=False)
    return figure


def _scored(looks: Sequence[Look]) -> list[Look]:
    """Those that have a score, each once: a run's only look is its first and its last."""
    once = [look for i, look in enumerate(looks) if not any(look is other for other in looks[:i])]
    return [look for look in once if any(score is not None for score in look.scores)]


def _score_against_length(axes, looks: Sequence[Look]) -> list:
    for look, color in zip(reversed(looks), ("#c44e52", "#999999"), strict=False):
        pairs = [pair for pair in zip(look.lengths, look.scores, strict=True) if pair[1] is not None]
        axes.scatter(*zip(*pairs, strict=True), s=9, alpha=0.6, color=color, label=f"step {look.step}")
    axes.set(title="score against length", xlabel="tokens", ylabel="score")
    return [axes]


def _shares(axes, history: History) -> list:
    _curves(axes, history, {name: name.replace("_", " ") for name in SHARES})
    axes.set(title="length's share, copied, repeated, cut", xlabel="step", ylim=(-0.03, 1.03))
    return [axes]


def _factor_names(history: History) -> dict[str, str]:
    """With what each is called."""
    names = dict.fromkeys(name.removeprefix(PREFIX) for entry in history for name in entry)
    return {name: name.partition("/")[2] for name in names if name.startswith("factor_share/")}


def _factors(axes, history: History) -> list:
    _curves(axes, history, _factor_names(history))
    axes.set(title="share of the score within prompts, by factor", xlabel="step", ylim=(-0.03, 1.03))
    return [axes]


def _curves(axes, history: History, labels: Mapping[str, str]) -> None:
    """Each thinner than the one before it, so that equal ones are all seen."""
    widths = {name: 1.0 + 1.3 * (len(labels) - 1 - i) for i, name in enumerate(labels)}
    for name, label in labels.items():
        points = [(entry["step"], entry[PREFIX + name]) for entry in history if PREFIX + name in entry]
        if points:
            look = {"linewidth": widths[name], "marker": "o", "markersize": widths[name] + 2}
            axes.plot(*zip(*points, strict=True), **look, label=label.replace("$", r"\$"))


def _gold(axes, curve: GoldCurve) -> list:
    """Proxy and gold, each on an axis of its own; gold thinner, so that both are seen where they go alike."""
    other = axes.twinx()
    axes.errorbar(curve.steps, curve.proxy, curve.proxy_errors, color="#4c72b0", linewidth=3.0, label="proxy (left)")
    other.errorbar(curve.steps, curve.gold, curve.gold_errors, color="#dd8452", linewidth=1.2, label="gold (right)")
    axes.set_ylabel("proxy", color="#4c72b0")
    other.set_ylabel("gold", color="#dd8452")
    if curve.turning_point is not None:
        axes.axvline(curve.turning_point, color="black", linestyle=":", linewidth=1)
    axes.set(title="proxy against gold", xlabel="step")
    return [axes, other]
